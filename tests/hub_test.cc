// Fetching from a fake hub over real HTTP (hub/fake_hub.h): what comes, and what happens when something goes wrong on
// the way. The command line on top of it: hub/hub_cli_test.sh.
#include "hub/hub_testing.h"

namespace saaz {
namespace {

TEST_F(Hub, FetchLaysOutTheCache) {
  const FetchResult result = fetch();
  const fs::path repo = folder_ / "cache/models--org--name";
  EXPECT_EQ(result.snapshot, repo / "snapshots" / commit_);
  EXPECT_EQ(read_file(repo / "refs/main"), commit_);
  expect_snapshot(result.snapshot, files_);
  EXPECT_EQ(fs::read_symlink(result.snapshot / "config.json").string(),
            "../../blobs/" + blob(kSmall).filename().string());
  EXPECT_EQ(fs::read_symlink(result.snapshot / "sub/notes.md").string().substr(0, 15), "../../../blobs/");
  EXPECT_EQ(fs::read_symlink(result.snapshot / "model.safetensors").filename().string(), sha256_hex(weights_));
  EXPECT_EQ(result.n_fetched, 4u);
  EXPECT_EQ(result.bytes_fetched, weights_.size() + kSmall.size() + files_["sub/notes.md"].size());
}

TEST_F(Hub, WhatIsThereIsNotFetchedAgain) {
  fetch();
  fake_.forget_requests();
  const FetchResult again = fetch();
  EXPECT_EQ(again.n_fetched, 0u);
  EXPECT_EQ(fake_.requests().size(), 1u) << "only the revision is asked for";
}

TEST_F(Hub, ANewCommitTakesWhatItShares) {
  fetch();
  const std::string next =
      fake_.add_commit("models/org/name", "main", {{"config.json", "{}"}, {"w.safetensors", weights_}});
  const FetchResult result = fetch();
  EXPECT_EQ(result.commit, next);
  EXPECT_EQ(result.bytes_fetched, 2u);
  EXPECT_EQ(read_file(result.snapshot / "w.safetensors"), weights_);
}

TEST_F(Hub, RevisionsPatternsPagesAndDatasets) {
  const std::string tagged = fake_.add_commit("models/org/name", "v1.0", {{"config.json", "old"}});
  EXPECT_EQ(read_file(fetch(settings(), {kRepo.repo, "v1.0"}).snapshot / "config.json"), "old");
  EXPECT_EQ(fetch(settings(), {kRepo.repo, tagged}).commit, tagged);
  EXPECT_EQ(fetch_only("*.md").n_files, 1u);
  EXPECT_EQ(fetch_only("sub/").n_files, 1u);
  expect_error(3, "none matches --include '*.xyz'", [&] { fetch_only("*.xyz"); });
  Files many;
  for (int i = 0; i < 25; ++i) many["f" + std::to_string(i)] = std::to_string(i);
  fake_.add_commit("datasets/org/many", "main", many);
  fake_.page_size = 10;
  const FetchResult result = fetch(settings(), {{RepoKind::dataset, "org/many"}});
  EXPECT_EQ(result.n_files, 25u);
  EXPECT_EQ(fake_.count("/tree/"), 5u) << "two listings of one page, one of three";
  expect_snapshot(result.snapshot, many);
}

TEST_F(Hub, GoesOnAfterACutConnection) {
  fake_.misbehave({.match = "/blob/", .times = 2, .cut_after = 1 << 20});
  const FetchResult result = fetch();
  expect_snapshot(result.snapshot, files_);
  EXPECT_EQ(fake_.count("/blob/"), 3u);
  EXPECT_EQ(result.bytes_fetched, weights_.size() + kSmall.size() + files_["sub/notes.md"].size()) << "no byte twice";
  EXPECT_NE(log_.find("trying again"), std::string::npos);
}

TEST_F(Hub, GoesOnWithWhatAnEarlierRunLeft) {
  fs::create_directories(blob(weights_).parent_path());
  write_file_atomically(blob(weights_).string() + ".incomplete", weights_.substr(0, 1000000));
  const FetchResult result = fetch_only("*.safetensors");
  EXPECT_EQ(result.bytes_fetched, weights_.size() - 1000000);
  bool has_range = false;
  for (const Request& request : fake_.requests()) has_range |= request.header("range") == "bytes=1000000-";
  EXPECT_TRUE(has_range);
  expect_snapshot(result.snapshot, {{"model.safetensors", weights_}});
}

TEST_F(Hub, StartsAnewWhereTheServerKnowsNoRanges) {
  fake_.serves_ranges = false;
  fake_.misbehave({.match = "/blob/", .cut_after = 1 << 20});
  expect_snapshot(fetch().snapshot, files_);
}

TEST_F(Hub, StartsAnewWhenThePartIsTooLong) {
  fs::create_directories(blob(weights_).parent_path());
  write_file_atomically(blob(weights_).string() + ".incomplete", weights_ + "tail");
  expect_snapshot(fetch().snapshot, files_);
}

TEST_F(Hub, AWrongChecksumLeavesNothingBehind) {
  for (const char* file : {"/blob/", "resolve/" /* the small ones */}) {
    fs::remove_all(folder_ / "cache");
    fake_.misbehave({.match = file == std::string("/blob/") ? file : commit_ + "/config.json", .flip = 10});
    expect_error(8, "wrong checksum", [&] { fetch(); });
    for (const std::string& name : cached_blobs()) EXPECT_EQ(name.find("incomplete"), std::string::npos);
    EXPECT_FALSE(fs::exists(folder_ / "cache/models--org--name/refs/main")) << "a ref names whole snapshots only";
    expect_snapshot(fetch().snapshot, files_);
  }
}

TEST_F(Hub, AWrongPartOfAnEarlierRunIsFoundAndRemoved) {
  fs::create_directories(blob(weights_).parent_path());
  write_file_atomically(blob(weights_).string() + ".incomplete", std::string(1000, 'x'));
  expect_error(8, "the download was removed, run this again", [&] { fetch(); });
  expect_snapshot(fetch().snapshot, files_);
}

TEST_F(Hub, EachCauseHasItsMessage) {
  HubSettings s = settings();
  s.token = {};
  fake_.repository("models/org/name").is_private = true;
  expect_error(3, "org/name is not there for strangers: check the name; if it is private or gated, make a token",
               [&] { fetch(s); });
  fake_.repository("models/org/name").is_private = false;
  fake_.repository("models/org/name").is_gated = true;
  expect_error(3, "org/name is gated: log in, accept its terms at " + fake_.endpoint() + "/org/name",
               [&] { fetch(s); });
  expect_error(3, "its terms are not accepted by the account of this token", [&] { fetch(); });
  fake_.repository("models/org/name").is_gated = false;
  s.token = Token("hf_CANARYwrong", "HF_TOKEN");
  expect_error(3, "the hub does not accept the token of HF_TOKEN (Invalid credentials: Bearer ***)", [&] { fetch(s); });
  expect_error(3, "has no model org/nothing", [&] { fetch(settings(), {{RepoKind::model, "org/nothing"}}); });
  expect_error(3, "has no dataset org/name", [&] { fetch(settings(), {{RepoKind::dataset, "org/name"}}); });
  expect_error(3, "org/name has no branch, tag or commit 'v9'", [&] { fetch(settings(), {kRepo.repo, "v9"}); });
  fake_.misbehave({.match = "/resolve/", .status = 403, .headers = {"X-Error-Message: no role"}});
  expect_error(3, "the token of HF_TOKEN lacks the right", [&] { fetch(); });
  fake_.misbehave({.match = "/revision/", .times = 5, .status = 503});
  expect_error(5, "HTTP 503", [&] { fetch(); });
  fake_.misbehave({.match = "/revision/", .status = 200, .body = "<html>Please log in</html>"});
  expect_error(5, "is a proxy or a login page in between?", [&] { fetch(); });
  fake_.misbehave({.match = "/revision/", .status = 418});
  expect_error(5, "HTTP 418", [&] { fetch(); });
}

TEST_F(Hub, EachFaultOfTheNetworkHasItsMessage) {
  HubSettings s = settings();
  s.token = {};
  const std::string nowhere(70, 'x');  // too long for a name server to be asked
  s.endpoint = "http://" + nowhere + ".invalid";
  expect_error(5, "the host " + nowhere + ".invalid is not found", [&] { fetch(s); });
  s.endpoint = "http://127.0.0.1:1";
  expect_error(5, "127.0.0.1 does not take the connection", [&] { fetch(s); });
  s.endpoint = "https" + fake_.endpoint().substr(4);
  expect_error(5, "no secure connection with 127.0.0.1", [&] { fetch(s); });
  s.endpoint = "ftp://127.0.0.1";
  expect_error(2, "is no address to fetch from", [&] { fetch(s); });
  s.endpoint = "http://user:CANARY@127.0.0.1";
  expect_error(2, "is no address to fetch from", [&] { fetch(s); });
  s = settings();
  s.stall_seconds = 1;
  fake_.misbehave({.match = "/revision/", .times = 9, .stall_ms = 2500});
  expect_error(5, "127.0.0.1 is silent", [&] { fetch(s); });
}

TEST_F(Hub, WaitsAsLongAsTheHubAsks) {
  fake_.misbehave({.match = "/revision/", .status = 429, .headers = {"Retry-After: 1"}});
  const double started = monotonic_seconds();
  expect_snapshot(fetch().snapshot, files_);
  EXPECT_GE(monotonic_seconds() - started, 1.0);
  fake_.misbehave({.match = "/revision/", .status = 429, .headers = {"Retry-After: 7200"}});
  expect_error(5, "the hub limits requests (HTTP 429): wait 7200 s", [&] { fetch(); });
}

TEST_F(Hub, TheTokenStaysWithItsHost) {
  fetch();
  size_t n_with = 0, n_on_store = 0;
  for (const Request& request : fake_.requests()) {
    EXPECT_TRUE(!request.on_store || request.header("authorization").empty()) << request.target;
    n_on_store += request.on_store;
    n_with += !request.header("authorization").empty();
  }
  EXPECT_EQ(n_on_store, 1u);
  EXPECT_EQ(n_with, fake_.requests().size() - 1);
  // Not even when the hub's API itself points elsewhere.
  fake_.forget_requests();
  fake_.misbehave({.match = "/revision/", .status = 307, .headers = {"Location: " + fake_.store() + "/elsewhere"}});
  thrown_by([&] { fetch(); });
  ASSERT_EQ(fake_.requests().size(), 2u);
  EXPECT_NE(fake_.requests()[0].header("authorization"), "");
  EXPECT_EQ(fake_.requests()[1].header("authorization"), "");
}

TEST_F(Hub, AMirrorGetsTheTokenOnlyWhenTold) {
  HubSettings s = settings();
  s.send_token = false;
  fetch(s);
  for (const Request& request : fake_.requests()) EXPECT_EQ(request.header("authorization"), "");
  fake_.repository("models/org/name").is_private = true;
  expect_error(3, "a token is there (HF_TOKEN), but HF_ENDPOINT is not https://huggingface.co", [&] { fetch(s); });
  s.send_token = true;
  s.endpoint = "http://mirror.invalid";
  expect_error(2, "is not encrypted", [&] { fetch(s); });
}

TEST_F(Hub, RedirectsInACircleEnd) {
  fake_.misbehave(
      {.match = "/revision/", .times = 50, .status = 302, .headers = {"Location: /api/models/org/name/revision/main"}});
  expect_error(5, "redirects in a circle", [&] { fetch(); });
}

TEST_F(Hub, PathsThatLeaveTheFolderAreRefused) {
  for (const char* path :
       {"../evil", "/etc/evil", "a/../../evil", "a//b", "a/./b", "a\\\\b", "", "a/", "a\\u0000b", "..", "a\\nb"}) {
    fs::remove_all(folder_ / "cache");
    fake_.misbehave(
        {.match = "/tree/",
         .status = 200,
         .body = fmt::format("[{{\"type\": \"file\", \"path\": \"{}\", \"size\": 1, \"oid\": \"{:040}\"}}]", path, 0)});
    expect_error(3, "is refused", [&] { fetch(); });
    EXPECT_FALSE(fs::exists(folder_ / "cache")) << path;
  }
  for (const char* name : {"../x", "a/../b", "a", "/a/b", "a/b/c", "a--b/c", "a/b@../c", "a/b@", "-a/b", "a/b\n"})
    expect_error(2, "", [&] { parse_repo(name, RepoKind::model); });
  EXPECT_EQ(parse_repo("google/gemma-3n-E4B-it@refs/pr/1", RepoKind::model).revision, "refs/pr/1");
}

TEST_F(Hub, OfflineUsesTheCacheAlone) {
  HubSettings s = settings();
  s.offline = true;
  expect_error(3, "org/name at 'main' is not in the cache", [&] { fetch(s); });
  fetch_only("config.json");
  fake_.forget_requests();
  EXPECT_EQ(fetch(s, kRepo, {"config.json"}).commit, commit_);
  expect_error(3, "is not whole in the cache", [&] { fetch(s); });
  EXPECT_EQ(find_snapshot(s.cache, kRepo)->filename(), commit_);
  EXPECT_FALSE(find_snapshot(s.cache, {kRepo.repo, "v9"}));
  EXPECT_EQ(fake_.requests().size(), 0u);
}

}  // namespace
}  // namespace saaz
