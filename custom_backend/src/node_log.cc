#include "node_log.h"

#include <chrono>
#include <cstdio>
#include <sstream>

namespace token_stream {
namespace {

// A client may put any character into its request id.
std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (const char character : text) {
    if (character == '"' || character == '\\') {
      out += '\\';
      out += character;
    } else if (static_cast<unsigned char>(character) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", character);
      out += escape;
    } else {
      out += character;
    }
  }
  return out + '"';
}

std::string json_list(const std::vector<int64_t>& numbers) {
  std::string out = "[";
  for (const int64_t number : numbers) out += (out.size() > 1 ? ", " : "") + std::to_string(number);
  return out + ']';
}

}  // namespace

// One write a line, so that lines of several threads do not mix.
void log_message(const LogEntry& entry) {
  const auto now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::ostringstream line;
  line << std::fixed << "{\"time\": " << now << ", \"node\": " << json_string(entry.node)
       << ", \"request_id\": " << json_string(entry.request_id) << ", \"stream_id\": " << entry.stream_id
       << ", \"index\": " << (entry.index ? std::to_string(*entry.index) : "null")
       << ", \"dims\": " << json_list(entry.dims) << ", \"end\": " << (entry.end ? "true" : "false");
  if (entry.memory != nullptr) line << ", \"memory\": " << json_string(entry.memory);
  line << "}\n";
  std::fputs(line.str().c_str(), stderr);
}

}  // namespace token_stream
