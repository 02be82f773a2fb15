#include "token_stream/guard.h"

#include <array>
#include <stdexcept>

namespace token_stream {
namespace {

std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < table.size(); ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0xEDB88320U : 0U);
    table[byte] = value;
  }
  return table;
}

}  // namespace

uint32_t crc32(const Ids& ids, uint32_t checksum) {
  static const std::array<uint32_t, 256> kTable = crc_table();
  uint32_t value = ~checksum;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      const uint32_t byte = (static_cast<uint32_t>(id) >> shift) & 0xFF;
      value = (value >> 8) ^ kTable[(value ^ byte) & 0xFF];
    }
  }
  return ~value;
}

void StreamGuard::check(const Message& message) {
  if (broken_.empty()) broken_ = broken_rule(message);
  if (!broken_.empty()) {
    throw std::invalid_argument(std::to_string(index_) +
                                " message(s) of the stream kept the contract; the next one does not " + broken_);
  }
  index_ = message.index;
  stream_id_ = message.stream_id;
  ended_ = message.end;
}

// The rule in brackets, and what is wrong; empty for a message that is right.
std::string StreamGuard::broken_rule(const Message& message) {
  if (message.ids.size() != 1) {
    return "(length): TOKEN_IDS holds " + with_commas(message.ids.size()) + " ids; expected 1";
  }
  const int32_t id = message.ids.front();
  if (id < 0 || static_cast<size_t>(id) >= vocabulary_) {
    return "(vocabulary): id " + std::to_string(id) + " is not in the vocabulary (0 to " +
           with_commas(vocabulary_ - 1) + ")";
  }
  if (index_ > 0 && message.stream_id != stream_id_) {
    return "(stream): STREAM_ID is " + std::to_string(message.stream_id) + "; the stream began with " +
           std::to_string(stream_id_);
  }
  if (message.index != index_ + 1) {
    return "(index): INDEX is " + std::to_string(message.index) + "; expected " + std::to_string(index_ + 1);
  }
  if (ended_) return "(end): it comes after the end mark";
  checksum_ = crc32(message.ids, checksum_);
  if (message.checksum != static_cast<int64_t>(checksum_)) {
    return "(checksum): its ids are not those that the model made";
  }
  return "";
}

void StreamGuard::finish() const {
  if (!ended_) {
    throw std::invalid_argument("the stream has " + std::to_string(index_) +
                                " message(s), and none has the end mark (end)");
  }
}

}  // namespace token_stream
