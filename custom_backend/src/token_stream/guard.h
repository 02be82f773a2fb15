// What every message of a stream must be, checked before it leaves.
#pragma once

#include <cstdint>
#include <string>

#include "token_bytes.h"

namespace token_stream {

// CRC-32 (ISO-HDLC, as in zlib) of ids as little-endian INT32, continued from `checksum`.
uint32_t crc32(const Ids& ids, uint32_t checksum);

// What the node hands on in one response. `index` counts the messages of a stream from 1; `checksum` is the CRC-32 of all
// ids that the model has made for this stream up to this message, taken where they are made.
struct Message {
  Ids ids;
  int32_t index;
  int64_t stream_id;
  bool end;
  int64_t checksum;
};

// Checks the messages of one stream against the contract: one new id each, in order, up to one end mark. The rules and
// their order are those of model_repository/inference/guard.py, as far as C++ has not made them part of the types.
class StreamGuard {
 public:
  explicit StreamGuard(size_t vocabulary) : vocabulary_(vocabulary) {}

  // Throws std::invalid_argument at the first rule that the message breaks, and for every message after it.
  void check(const Message& message);
  // Throws std::invalid_argument if the stream has no end mark.
  void finish() const;

 private:
  std::string broken_rule(const Message& message);

  size_t vocabulary_;
  int64_t stream_id_ = 0;
  int32_t index_ = 0;
  bool ended_ = false;
  uint32_t checksum_ = 0;
  std::string broken_;
};

}  // namespace token_stream
