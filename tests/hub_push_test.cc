// Sending to a fake hub over real HTTP (hub/fake_hub.h).
#include "hub/hub_testing.h"

namespace saaz {
namespace {

TEST_F(Hub, PushMakesTheRepositoryAndOneCommit) {
  const Files sent = {{"README.md", "مدل\n"},
                      {"model.safetensors", noise(3 << 20, 7)},
                      {"empty.safetensors", ""},
                      {"sub/adapter.safetensors", noise(1000, 8)}};
  write_out(sent);
  write_out({{"checkpoint-5/x", "x"}, {".lock", "x"}, {"y.partial", "x"}});
  const PushResult result = push({.message = "نخستین \"نسخه\"", .make_private = true});
  EXPECT_EQ(result.n_sent, 4u);
  EXPECT_EQ(result.bytes_sent, (3u << 20) + 1000);
  const testing_hub::Repository there = fake_.copy_of("models/org/sent");
  EXPECT_TRUE(there.is_private);
  EXPECT_EQ(there.last_message, "نخستین \"نسخه\"");
  Files expected = sent;
  expected[".gitattributes"] = "*.safetensors filter=lfs\n";
  EXPECT_EQ(there.commits.at(there.refs.at("main")), expected);
  EXPECT_EQ(fake_.count("/commit/"), 1u);
  for (const Request& request : fake_.requests())
    EXPECT_TRUE(!request.on_store || request.header("authorization").empty()) << request.target;
  // Again: all is there.
  const PushResult again = push();
  EXPECT_EQ(again.n_unchanged, 4u);
  EXPECT_EQ(fake_.count("/commit/"), 1u);
  // A new branch gets what is new.
  write_out({{"README.md", "مدل دیگر\n"}});
  push({}, "org/sent", "second");
  EXPECT_EQ(fake_.copy_of("models/org/sent").commits.size(), 3u);
  EXPECT_EQ(fake_.count("PUT /put/"), 1u) << "the small object, once";
}

TEST_F(Hub, LogsOfARunStayHereUnlessAsked) {
  const Files expected = {{"README.md", "x"},
                          {"adapter_config.json", "{}"},
                          {"adapter_model.safetensors", "w"},
                          {"charts/loss.svg", "c"},
                          {"tokenizer.json", "{}"}},
              logs = {{"events.jsonl", "{}"},       {"recipe.yaml", "x"},
                      {"row_losses.jsonl", "{}"},   {"runs/a/events.out.tfevents.1", "t"},
                      {"trainer_state.json", "{}"}, {"wandb/offline-run-1/run-1.wandb", "b"}};
  write_out(expected);
  write_out(logs);
  write_out({{"checkpoint-5/x", "x"}, {"abandoned-checkpoint-6/x", "x"}});
  push();
  testing_hub::Repository there = fake_.copy_of("models/org/sent");
  Files sent = there.commits.at(there.refs.at("main"));
  sent.erase(".gitattributes");
  EXPECT_EQ(sent, expected);
  const PushPlan plan = plan_push(folder_ / "out", {}), all = plan_push(folder_ / "out", {}, RunLogs::go);
  EXPECT_EQ(plan.logs, (std::vector<std::string>{"events.jsonl", "recipe.yaml", "row_losses.jsonl", "runs",
                                                 "trainer_state.json", "wandb"}));
  EXPECT_EQ(plan.left_out, (std::vector<std::string>{"abandoned-checkpoint-6", "checkpoint-5"}));
  EXPECT_EQ(all.files.size(), expected.size() + logs.size());
  EXPECT_TRUE(all.logs.empty());
  // In a folder that is no run, the names mean nothing.
  fs::remove(folder_ / "out" / "events.jsonl");
  EXPECT_EQ(plan_push(folder_ / "out", {}).files.size(), expected.size() + logs.size() - 1);
}

TEST_F(Hub, PartsThatArrivedAreNotSentAgain) {
  const std::string content = noise(3 << 20, 9);  // 12 parts
  write_out({{"model.safetensors", content}});
  fake_.misbehave({.match = "/part/1/6", .times = 5, .status = 500});
  expect_error(5, "HTTP 500", [&] { push(); });
  fake_.forget_requests();
  const PushResult result = push();
  EXPECT_EQ(fake_.count("PUT /part/"), 7u);
  EXPECT_EQ(fake_.count("/objects/batch"), 0u);
  EXPECT_EQ(fake_.count("/verify"), 1u);
  EXPECT_EQ(result.bytes_sent, 7u * (256 << 10));
  const testing_hub::Repository there = fake_.copy_of("models/org/sent");
  EXPECT_EQ(there.commits.at(there.refs.at("main")).at("model.safetensors"), content);
  EXPECT_TRUE(fs::is_empty(folder_ / "state"));
}

TEST_F(Hub, ACutPartIsSentAgainAndOthersAreNot) {
  write_out({{"model.safetensors", noise(3 << 20, 9)}});
  fake_.misbehave({.match = "/part/1/4", .times = 2, .cut_after = 100000});
  push();
  EXPECT_EQ(fake_.count("PUT /part/"), 12u) << "arrived parts; the cut ones never became requests";
}

TEST_F(Hub, AnExpiredUploadStartsAnew) {
  write_out({{"model.safetensors", noise(3 << 20, 9)}});
  fake_.misbehave({.match = "/part/1/6", .times = 5, .status = 500});
  thrown_by([&] { push(); });
  fake_.forget_uploads();
  push();
  EXPECT_EQ(fake_.count("PUT /part/2/"), 12u);
  EXPECT_EQ(fs::status(folder_ / "state").permissions(), fs::perms::owner_all) << "it holds signed addresses";
}

TEST_F(Hub, AHubThatStoresSomethingElseIsFound) {
  write_out({{"model.safetensors", noise(1000, 9)}});
  fake_.misbehave({.match = "/verify", .status = 404});
  EXPECT_EQ(thrown_by([&] { push(); }).first, 3);
  EXPECT_EQ(fake_.count("/commit/"), 0u);
}

TEST_F(Hub, APrivatePushNeverGoesToAPublicRepository) {
  write_out({{"README.md", "x"}});
  fake_.ignores_visibility = true;
  expect_error(3, "is public, and --private was asked: nothing was sent", [&] { push({.make_private = true}); });
  EXPECT_EQ(fake_.count("preupload"), 0u);
}

TEST_F(Hub, SecretsAndLinksAreNotPushed) {
  write_out({{"config.json", std::string("{\"token\": \"") + FakeHub::kToken + "\"}"}});
  expect_error(3, "holds the access token of HF_TOKEN", [&] { push(); });
  write_out({{"config.json", "{}"}});
  fs::create_symlink("/etc/passwd", folder_ / "out/link");
  expect_error(3, "is a link", [&] { push(); });
  EXPECT_EQ(fake_.requests().size(), 0u);
  expect_error(3, "there is no folder", [&] { plan_push(folder_ / "nothing", {}); });
}

}  // namespace
}  // namespace saaz
