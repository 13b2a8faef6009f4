// The dashboard over real HTTP: what a viewer gets when it comes, while the run goes on and at the end; that nothing
// can be changed through it; that a training with it makes the same bytes.
#include "serve/dashboard.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/check.h"
#include "base/system.h"
#include "report/run_record.h"
#include "serve/client.h"
#include "train/trainer.h"

namespace saaz {
namespace {

using testing_serve::Client;
using testing_serve::request_text;
using testing_serve::status_of;

constexpr PageFile kFiles[] = {{"dashboard.html", "<!doctype html>"}, {"other.html", "no"}, {"common.js", "export {}"}};

class DashboardTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("saaz-dashboard-" + std::to_string(getpid()));
    fs::remove_all(root_);
    fs::create_directories(root_ / "run");
  }
  void TearDown() override { fs::remove_all(root_); }

  void append(const std::string& line) const {
    std::ofstream(root_ / "run" / "events.jsonl", std::ios::app) << line << "\n";
  }
  std::unique_ptr<Dashboard> open() const {
    return std::make_unique<Dashboard>(std::vector<fs::path>{root_ / "run"}, listen_at("127.0.0.1:0"), kFiles);
  }
  static int port_of(const Dashboard& dashboard) {
    const std::string address = dashboard.address();
    return std::stoi(address.substr(address.rfind(':') + 1));
  }
  static int status(int port, const std::string& method_and_path, const std::string& fields = "") {
    Client client(port);
    client.send(request_text(method_and_path, "", fields));
    return status_of(client.receive_reply().first);
  }

  fs::path root_;
};

TEST_F(DashboardTest, StateThenNewsThenGoodbye) {
  append(R"({"event":"start","max_steps":5,"unix_time":1})");
  append(R"({"event":"step","step":1,"loss_nats":2.5,"unix_time":2})");
  std::unique_ptr<Dashboard> dashboard = open();
  Client early(port_of(*dashboard)), late(port_of(*dashboard));
  early.send(request_text("GET /events"));
  EXPECT_NE(early.receive_until("\r\n\r\n").find("text/event-stream"), std::string::npos);
  const std::string state = early.receive_until("\"step_columns\"");
  EXPECT_NE(state.find("event: state"), std::string::npos) << state;
  EXPECT_NE(state.find(R"("steps": [[1, 2.5, )"), std::string::npos) << state;
  append(R"({"event":"step","step":2,"loss_nats":2.25,"unix_time":3})");
  const std::string news = early.receive_until("\"samples\"");
  EXPECT_NE(news.find("event: news"), std::string::npos) << news;
  EXPECT_NE(news.find(R"("steps": [[2, 2.25, )"), std::string::npos) << news;
  EXPECT_EQ(news.find("[1, 2.5"), std::string::npos) << news;
  late.send(request_text("GET /events"));
  EXPECT_NE(late.receive_until("\"step_columns\"").find("[2, 2.25, "), std::string::npos);
  append(R"({"event":"end","step":2,"unix_time":4})");
  dashboard.reset();
  for (Client* client : {&early, &late}) {
    const std::string rest = client->receive_all();
    EXPECT_NE(rest.find(R"("status": "finished")"), std::string::npos) << rest;
    EXPECT_NE(rest.find("event: bye"), std::string::npos) << rest;
  }
}

TEST_F(DashboardTest, WhoeverIsAnsweredAtTheEndIsToldAll) {
  append(R"({"event":"start","max_steps":5,"unix_time":1})");
  append(R"({"event":"end","step":2,"unix_time":4})");
  int n_told = 0;
  for (int round = 0; round < 40; ++round) {
    std::unique_ptr<Dashboard> dashboard = open();
    std::vector<std::unique_ptr<Client>> viewers;
    for (int i = 0; i < 16; ++i) viewers.push_back(std::make_unique<Client>(port_of(*dashboard)));
    for (const auto& viewer : viewers) viewer->send(request_text("GET /events"));
    if (round % 2 == 1) viewers[0]->receive_until("\r\n\r\n");
    dashboard.reset();
    for (const auto& viewer : viewers) {
      const std::string all = viewer->receive_all();
      if (all.empty() || status_of(all) == 503) continue;  // came too late
      ++n_told;
      EXPECT_NE(all.find(R"("status": "finished")"), std::string::npos) << all;
      EXPECT_NE(all.find("event: bye"), std::string::npos) << all;
    }
  }
  EXPECT_GT(n_told, 0);
}

TEST_F(DashboardTest, PagesAreServedAndNothingCanBeChanged) {
  append(R"({"event":"start","max_steps":5})");
  const std::unique_ptr<Dashboard> dashboard = open();
  const int port = port_of(*dashboard);
  EXPECT_EQ(status(port, "GET /"), 200);
  EXPECT_EQ(status(port, "GET /?lang=fa"), 200);
  EXPECT_EQ(status(port, "GET /assets/common.js"), 200);
  EXPECT_EQ(status(port, "GET /api/runs"), 200);
  EXPECT_EQ(status(port, "GET /assets/other.html"), 404);
  EXPECT_EQ(status(port, "GET /../../etc/passwd"), 404);
  EXPECT_EQ(status(port, "GET /run/events.jsonl"), 404);
  for (const char* request : {"POST /", "PUT /api/runs", "DELETE /events"})
    EXPECT_EQ(status(port, request) / 100, 4) << request;
  // A page elsewhere that was made to look like this machine.
  Client rebound(port);
  rebound.send("GET /api/runs HTTP/1.1\r\nHost: evil.example\r\n\r\n");
  EXPECT_EQ(status_of(rebound.receive_reply().first) / 100, 4);
}

TEST_F(DashboardTest, AddressesAreChecked) {
  EXPECT_EQ(listen_at("127.0.0.1:80").port, 80);
  EXPECT_EQ(listen_at("8123").host, "127.0.0.1");
  for (const char* bad : {"", ":80", "a:", "a:b", "a:70000", "a:-1", "80 "}) EXPECT_THROW(listen_at(bad), Error) << bad;
  EXPECT_THROW(Dashboard({root_}, listen_at("0.0.0.0:0"), kFiles), Error);
  const std::unique_ptr<Dashboard> dashboard = open();
  try {
    Dashboard({root_}, listen_at(fmt::format("127.0.0.1:{}", port_of(*dashboard))), kFiles);
    ADD_FAILURE() << "two servers on one port";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage) << error.what();
  }
}

TEST_F(DashboardTest, TrainingMakesTheSameBytesWithViewers) {
  const fs::path samples = fs::path(SAAZ_SOURCE_DIR) / "data" / "try";
  const auto trained = [&](const std::string& name) {
    const std::vector<std::string> settings = {"model.base=" + (samples / "model").string(),
                                               "data.train=" + (samples / "train.jsonl").string(),
                                               "data.validation.file=" + (samples / "valid.jsonl").string(),
                                               "output.dir=" + (root_ / name).string(), "train.max_steps=6"};
    train(*make_cpu_backend({.n_threads = 2}), load_recipe(samples / "recipe.yaml", settings), {});
    return read_file(root_ / name / "adapter_model.safetensors");
  };
  const std::string expected = trained("alone");
  auto dashboard =
      std::make_unique<Dashboard>(std::vector<fs::path>{root_ / "watched"}, listen_at("127.0.0.1:0"), kFiles);
  std::vector<std::unique_ptr<Client>> viewers;
  for (int i = 0; i < 8; ++i) {
    viewers.push_back(std::make_unique<Client>(port_of(*dashboard)));
    viewers.back()->send(request_text("GET /events"));
  }
  EXPECT_NE(viewers[0]->receive_until("\"step_columns\"").find("\"steps\": []"), std::string::npos);
  viewers.resize(6);  // some leave without a word, some never read
  EXPECT_EQ(trained("watched"), expected);
  dashboard.reset();
  EXPECT_NE(viewers[0]->receive_all().find(R"("status": "finished")"), std::string::npos);
}

}  // namespace
}  // namespace saaz
