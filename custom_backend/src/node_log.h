// Structured logs of a node: one JSON line for each message, on standard error, where the server's own log goes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace token_stream {

// What a node knows of one message; never its content, which belongs to a user.
struct LogEntry {
  const std::string& node;
  const std::string& request_id;
  int64_t stream_id;
  std::optional<int32_t> index;
  const std::vector<int64_t>& dims;
  bool end;
  const char* memory = nullptr;  // on a GPU: where Triton put the ids, "GPU" or "CPU"
};

void log_message(const LogEntry& entry);

}  // namespace token_stream
