#include "report/wandb.h"

#include <algorithm>
#include <cmath>

#include "report/protobuf.h"
#include "report/run_record.h"
#include "report/tracked_values.h"

namespace saaz {

namespace {

// Field numbers of wandb_internal.proto.
namespace record_field {
constexpr int num = 1, history = 2, summary = 3, metric = 12, run = 17, exit = 18, header = 21;
}
namespace run_field {
constexpr int run_id = 1, project = 3, config = 4, display_name = 8, start_time = 17;
}
constexpr int kUpdate = 1, kKey = 1, kValueJson = 16;                              // config, summary
constexpr int kItem = 1, kHistoryStep = 2, kStepNum = 1;                           // history
constexpr int kName = 1, kGlobName = 2, kStepMetric = 4, kOptions = 6, kSync = 1;  // metric
constexpr int kSeconds = 1, kNanos = 2;                                            // timestamp
constexpr int kRuntime = 2;                                                        // exit
constexpr int kVersionInfo = 1, kProducer = 1, kMinConsumer = 2;                   // header
constexpr const char* kXAxis = "train/global_step";

ProtoMessage item(const std::string& key, const Value& value) {
  return ProtoMessage().text(kKey, key).text(kValueJson, to_json(value));
}

std::string seconds_and_nanos(double unix_time) {
  const double whole = std::floor(unix_time);
  return ProtoMessage()
      .integer(kSeconds, static_cast<uint64_t>(whole))
      .integer(kNanos, static_cast<uint64_t>((unix_time - whole) * 1e9))
      .bytes();
}

}  // namespace

/// One record in LevelDB frames: blocks of 32 KiB, a frame never crosses one.
std::string WandbLog::record(int field, const std::string& message) {
  constexpr uint64_t kBlock = 32768, kFrameHeader = 7;
  enum : uint8_t { full = 1, first = 2, middle = 3, last = 4 };
  const std::string data = ProtoMessage().integer(record_field::num, ++n_records_).text(field, message).bytes();
  std::string out;
  for (size_t begin = 0; begin < data.size();) {
    uint64_t left = kBlock - (offset_ + out.size()) % kBlock;
    if (left < kFrameHeader) {
      out.append(left, '\0');
      left = kBlock;
    }
    const size_t n = std::min<size_t>(data.size() - begin, left - kFrameHeader);
    const bool is_first = begin == 0, is_last = begin + n == data.size();
    const char type = is_first && is_last ? full : is_first ? first : is_last ? last : middle;
    const std::string body = type + data.substr(begin, n);
    out += little_endian<uint32_t>(crc32<kCrc32Ieee>(body)) + little_endian(static_cast<uint16_t>(n)) + body;
    begin += n;
  }
  offset_ += out.size();
  return out;
}

std::string WandbLog::header(const std::string& id, const std::string& name, double unix_time, const Value& recipe) {
  std::string out = ":W&B" + little_endian<uint16_t>(0xBEE1) + '\0';
  offset_ = out.size();
  began_ = unix_time;
  const ProtoMessage version = ProtoMessage().text(kProducer, "0.22.0").text(kMinConsumer, "0.12.0");
  out += record(record_field::header, ProtoMessage().message(kVersionInfo, version).bytes());
  ProtoMessage config;
  if (recipe.is_object())
    for (const auto& [section, values] : recipe.members()) config.message(kUpdate, item(section, values));
  out += record(record_field::run, ProtoMessage()
                                       .text(run_field::run_id, id)
                                       .text(run_field::project, "saaz")
                                       .message(run_field::config, config)
                                       .text(run_field::display_name, name)
                                       .text(run_field::start_time, seconds_and_nanos(unix_time))
                                       .bytes());
  out += record(record_field::metric, ProtoMessage().text(kName, kXAxis).bytes());
  out += record(record_field::metric, ProtoMessage()
                                          .text(kGlobName, "*")
                                          .text(kStepMetric, kXAxis)
                                          .message(kOptions, ProtoMessage().integer(kSync, 1))
                                          .bytes());
  return out;
}

std::string WandbLog::bytes(const Value& event) {
  const TrackedValues values = tracked_values(event);
  if (values.empty()) return "";
  const double time = number_or(event, "unix_time", began_), runtime = time - began_;
  ProtoMessage items;
  for (const auto& [tag, value] : values) items.message(kItem, item(tag, value));
  if (text_or_empty(event, "event") == "end") {
    items.message(kUpdate, item(kXAxis, static_cast<int64_t>(number_or(event, "step", 0))));
    const uint64_t whole = static_cast<uint64_t>(std::max(0.0, runtime));
    std::string out = record(record_field::summary, items.bytes());
    return out += record(record_field::exit, ProtoMessage().integer(kRuntime, whole).bytes());
  }
  items.message(kItem, item(kXAxis, static_cast<int64_t>(number_or(event, "step", 0))))
      .message(kItem, item("_step", n_history_))
      .message(kItem, item("_runtime", runtime))
      .message(kItem, item("_timestamp", time))
      .message(kHistoryStep, ProtoMessage().integer(kStepNum, static_cast<uint64_t>(n_history_)));
  ++n_history_;
  return record(record_field::history, items.bytes());
}

}  // namespace saaz
