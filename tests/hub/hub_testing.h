// What the tests of the hub room share: a fake hub with a model in it, a folder of their own, and the commands' bodies.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "base/check.h"
#include "base/system.h"
#include "hub/cache.h"
#include "hub/fake_hub.h"
#include "hub/fetch.h"
#include "hub/push.h"

namespace saaz {

using testing_hub::FakeHub;
using testing_hub::Fault;
using testing_hub::Files;
using testing_hub::Request;

/// Bytes without a period that a wrong offset could hide behind.
inline std::string noise(size_t n, uint64_t seed = 1) {
  std::string out(n, '\0');
  for (char& c : out) c = static_cast<char>((seed = seed * 6364136223846793005u + 1442695040888963407u) >> 56);
  return out;
}

inline const std::string kSmall = "{\"model_type\": \"gemma3\"}\n";
inline const RepoRevision kRepo{{RepoKind::model, "org/name"}};

class Hub : public testing::Test {
 protected:
  void SetUp() override {
    setenv("no_proxy", "127.0.0.1", 1);
    // In memory where that is possible: every file of the cache is synced, and some tests write thousands.
    const fs::path root = fs::is_directory("/dev/shm") ? "/dev/shm" : fs::temp_directory_path();
    std::string pattern = (root / "saaz-hub-XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    weights_ = noise(3 << 20);
    files_ = {{"config.json", kSmall}, {"empty.txt", ""}, {"model.safetensors", weights_}, {"sub/notes.md", "سلام\n"}};
    commit_ = fake_.add_commit("models/org/name", "main", files_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  HubSettings settings() {
    HubSettings out;
    out.endpoint = fake_.endpoint();
    out.cache = folder_ / "cache";
    out.token = Token(FakeHub::kToken, "HF_TOKEN");
    out.send_token = true;
    out.backoff_seconds = 0.01;
    out.log = [this](const std::string& line) { log_ += line + "\n"; };
    return out;
  }
  FetchResult fetch() { return fetch(settings()); }
  FetchResult fetch_only(const std::string& pattern) { return fetch(settings(), kRepo, {pattern}); }
  static FetchResult fetch(const HubSettings& settings, const RepoRevision& what = kRepo,
                           const std::vector<std::string>& include = {}) {
    HubClient hub(settings);
    return fetch_repository(hub, what, include);
  }
  PushResult push(const PushOptions& options = {}, const std::string& repo = "org/sent",
                  const std::string& revision = "main") {
    HubClient hub(settings());
    const fs::path from = folder_ / "out";
    return push_folder(hub, from, plan_push(from, settings().token), {{RepoKind::model, repo}, revision}, options,
                       folder_ / "state");
  }
  /// Writes the folder that `push` sends.
  void write_out(const Files& files) {
    for (const auto& [path, content] : files) {
      fs::create_directories((folder_ / "out" / path).parent_path());
      write_file_atomically(folder_ / "out" / path, content);
    }
  }
  void expect_snapshot(const fs::path& snapshot, const Files& files) {
    for (const auto& [path, content] : files) EXPECT_EQ(read_file(snapshot / path), content) << path;
  }
  fs::path blob(const std::string& content) const {
    return folder_ / "cache/models--org--name/blobs" /
           (testing_hub::is_large("", content.size()) ? sha256_hex(content)
                                                      : git_blob_id(std::as_bytes(std::span(content))));
  }
  std::set<std::string> cached_blobs() const {
    std::set<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_ / "cache/models--org--name/blobs"))
      out.insert(entry.path().filename().string());
    return out;
  }

  FakeHub fake_;
  fs::path folder_;
  std::string weights_, commit_, log_;
  Files files_;
};

/// The code and the message of what `body` throws; {0, ""} when it throws nothing.
template <class Body>
std::pair<int, std::string> thrown_by(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return {static_cast<int>(error.code()), error.what()};
  }
  return {0, ""};
}

template <class Body>
void expect_error(int code, const std::string& fragment, Body&& body) {
  const auto [found, message] = thrown_by(body);
  EXPECT_EQ(found, code) << message;
  EXPECT_NE(message.find(fragment), std::string::npos) << "expected '" << fragment << "' in: " << message;
  EXPECT_EQ(message.find("CANARY"), std::string::npos) << "the token is in: " << message;
  EXPECT_EQ(message.find("SIGNED"), std::string::npos) << "a signature is in: " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

}  // namespace saaz
