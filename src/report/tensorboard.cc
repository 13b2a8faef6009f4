#include "report/tensorboard.h"

#include <cmath>

#include "report/protobuf.h"
#include "report/run_record.h"
#include "report/tracked_values.h"

namespace saaz {

namespace {

// Field numbers of event.proto, summary.proto and tensor.proto.
namespace event_field {
constexpr int wall_time = 1, step = 2, file_version = 3, summary = 5;
}
namespace value_field {
constexpr int tag = 1, simple_value = 2, tensor = 8, metadata = 9;
}
constexpr int kSummaryValue = 1, kPluginData = 1, kPluginName = 1;
constexpr int kTensorType = 1, kTensorShape = 2, kTensorString = 8, kShapeDim = 2, kDimSize = 1;
constexpr uint64_t kString = 7;  // DT_STRING

std::string masked_crc(std::string_view bytes) {
  const uint32_t c = crc32<kCrc32Castagnoli>(bytes);
  return little_endian<uint32_t>((c >> 15 | c << 17) + 0xa282ead8u);
}

std::string frame(const ProtoMessage& event) {
  const std::string length = little_endian<uint64_t>(event.bytes().size());
  return length + masked_crc(length) + event.bytes() + masked_crc(event.bytes());
}

ProtoMessage text_summary(const std::string& tag, const std::string& text) {
  const ProtoMessage shape = ProtoMessage().message(kShapeDim, ProtoMessage().integer(kDimSize, 1));
  const ProtoMessage tensor =
      ProtoMessage().integer(kTensorType, kString).message(kTensorShape, shape).text(kTensorString, text);
  const ProtoMessage metadata = ProtoMessage().message(kPluginData, ProtoMessage().text(kPluginName, "text"));
  return ProtoMessage()
      .text(value_field::tag, tag)
      .message(value_field::metadata, metadata)
      .message(value_field::tensor, tensor);
}

}  // namespace

std::string tensorboard_header(double unix_time, const std::string& recipe) {
  const ProtoMessage version =
      ProtoMessage().real(event_field::wall_time, unix_time).text(event_field::file_version, "brain.Event:2");
  // Four spaces make it a code block of the Markdown that TensorBoard shows texts as.
  std::string indented = "    ";
  for (const char c : recipe) indented += c == '\n' ? "\n    " : std::string(1, c);
  const ProtoMessage args =
      ProtoMessage()
          .real(event_field::wall_time, unix_time)
          .message(event_field::summary,
                   ProtoMessage().message(kSummaryValue, text_summary("args/text_summary", indented)));
  return frame(version) + frame(args);
}

std::string tensorboard_bytes(const Value& event) {
  ProtoMessage summary;
  for (const auto& [tag, value] : tracked_values(event))
    summary.message(
        kSummaryValue,
        ProtoMessage().text(value_field::tag, tag).real(value_field::simple_value, static_cast<float>(value)));
  if (summary.bytes().empty()) return "";
  return frame(ProtoMessage()
                   .real(event_field::wall_time, number_or(event, "unix_time", 0))
                   .integer(event_field::step, static_cast<uint64_t>(number_or(event, "step", 0)))
                   .message(event_field::summary, summary));
}

}  // namespace saaz
