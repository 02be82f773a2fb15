#include "token_text/decoder.h"

namespace token_stream {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

std::string TextDecoder::decode(std::string_view piece, bool last) {
  std::string text;
  for (const char byte : piece) read(byte, text);
  if (last && !held_.empty()) {
    text += kReplacement;
    held_.clear();
    reader_ = {};
  }
  return text;
}

// A byte that cannot follow ends the character that was begun, and may itself begin one.
void TextDecoder::read(char byte, std::string& text) {
  if (!reader_.read(static_cast<uint8_t>(byte))) {
    text += kReplacement;
    reader_ = {};
    const bool alone = held_.empty();
    held_.clear();
    if (!alone) read(byte, text);
    return;
  }
  held_ += byte;
  if (reader_.complete()) {
    text += held_;
    held_.clear();
  }
}

std::string DecoderTable::decode(int64_t stream, std::string_view piece, bool last, Clock::time_point now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = by_stream_.find(stream);
  if (found == by_stream_.end()) {
    found = by_stream_.emplace(stream, entries_.insert(entries_.end(), {stream, {}, now})).first;
  }
  const auto entry = found->second;
  entry->used = now;
  entries_.splice(entries_.end(), entries_, entry);
  std::string text = entry->decoder.decode(piece, last);
  if (last) {
    by_stream_.erase(found);
    entries_.erase(entry);
  }
  drop_old(now);
  return text;
}

void DecoderTable::drop(int64_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = by_stream_.find(stream);
  if (found == by_stream_.end()) return;
  entries_.erase(found->second);
  by_stream_.erase(found);
}

size_t DecoderTable::sweep(Clock::time_point now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  drop_old(now);
  return entries_.size();
}

void DecoderTable::drop_old(Clock::time_point now) {
  while (!entries_.empty() && (entries_.size() > kMostStreams || now - entries_.front().used > idle_)) {
    by_stream_.erase(entries_.front().stream);
    entries_.pop_front();
  }
}

}  // namespace token_stream
