#include "token_stream/stream.h"

#include <algorithm>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>

#include "node_log.h"

namespace token_stream {
namespace {

// The server tells a node of a cancellation before it has dealt with it itself, and crashes if the last response comes
// in between (seen on release 24.10; triton-inference-server/server#7840). So a cancelled stream is closed later.
constexpr std::chrono::milliseconds kSettle{50};

int64_t new_stream_id() {
  static thread_local std::mt19937_64 generator{(uint64_t{std::random_device{}()} << 32) | std::random_device{}()};
  return static_cast<int64_t>(generator() >> 1);
}

}  // namespace

void TokenQueue::put(std::optional<int32_t> token, bool complete) {
  if (token) waiting_.push_back(*token);
  complete_ = complete;
}

std::optional<int32_t> TokenQueue::next() {
  if (waiting_.empty()) return std::nullopt;
  const int32_t token = waiting_.front();
  waiting_.pop_front();
  checksum_ = crc32({token}, checksum_);
  return token;
}

void Window::spend() {
  --left_;
  moved_ = Clock::now();
}

void Window::grant(int64_t messages) {
  left_ = messages > std::numeric_limits<int64_t>::max() - std::max<int64_t>(left_, 0)
              ? std::numeric_limits<int64_t>::max()
              : left_ + messages;
  moved_ = Clock::now();
}

void Window::check() const {
  if (spent() && Clock::now() - moved_ > std::chrono::duration<double>(seconds_)) {
    std::ostringstream text;
    text << "the client granted no message for " << seconds_ << " s: it is taken for lost";
    throw std::invalid_argument(text.str());
  }
}

Stream::Stream(Node& node, Request request)
    : node_(node), request_(std::move(request)), id_(new_stream_id()), pending_(node.device) {}

void Stream::prepare() {
  const Options& options = request_.options;
  if (request_.max_tokens < 1) {
    throw std::invalid_argument("MAX_TOKENS is " + std::to_string(request_.max_tokens) + "; ask for at least 1");
  }
  if (options.guard) guard_.emplace(node_.tokens.size());
  if (options.window) window_.emplace(*options.window_key, *options.window, node_.limits.grant_seconds);
  if (!request_.forced) {
    waits_for_batch_ = true;
    return;
  }
  Ids& forced = *request_.forced;
  if (forced.empty()) {
    throw std::invalid_argument("FORCED_IDS is empty; send at least one id, or leave the input out");
  }
  node_.tokens.check(forced);
  if (static_cast<int64_t>(forced.size()) > request_.max_tokens) {
    forced.resize(static_cast<size_t>(request_.max_tokens));
  }
  tokens_ = TokenQueue(forced, true);
}

void Stream::join(std::unique_ptr<Sequence> sequence) {
  waits_for_batch_ = false;
  sequence_ = std::move(sequence);
}

bool Stream::look_for_cancel() {
  if (!cancelled_ && sender().cancelled()) {
    cancelled_ = Window::Clock::now();
    waits_for_batch_ = false;
    sequence_.reset();
  }
  return cancelled();
}

bool Stream::settled() const { return Window::Clock::now() - *cancelled_ > kSettle; }

bool Stream::advance(int64_t held_bytes) {
  if (stalled()) {
    window_->check();
    return true;
  }
  if (!tokens_.ready()) return true;
  const std::optional<int32_t> token = tokens_.next();
  if (!token) {
    // A decoupled step that answers nothing leaves the ensemble's request in flight for good.
    if (sent_ == 0) {
      cut();
    } else if (guard_) {
      guard_->finish();
    }
    return false;
  }
  const Message message{node_.rung->message(pending().ids, *token), ++index_, id_, tokens_.last(), tokens_.checksum()};
  check(message);
  send(message, "", held_bytes);
  node_.rung->keep(pending().ids, message.ids, node_.tokens.decodes_cleanly(message.ids));
  pending().on_device.assign(pending().ids);
  return true;
}

void Stream::check(const Message& message) {
  if (static_cast<int64_t>(message.ids.size()) > request_.options.max_message_ids) {
    throw std::invalid_argument(
        "message " + std::to_string(message.index) + " would hold " + with_commas(message.ids.size()) +
        " ids; at most " + with_commas(static_cast<uint64_t>(request_.options.max_message_ids)) +
        " are allowed in one message. Ask for fewer tokens, or raise the request parameter \"max_message_ids\". "
        "Rung append keeps its buffer: reload the model to empty it");
  }
  if (guard_) guard_->check(message);
}

void Stream::send(const Message& message, const std::string& error, int64_t heap) {
  const Memory memory = sender().send(message, error, heap);
  ++sent_;
  ended_ = message.end;
  if (window_) window_->spend();
  if (request_.options.log) log(message, memory);
}

// The last message of a stream that has no ids, or no more.
void Stream::send_no_ids(const std::string& error) {
  if (cancelled()) return;
  send({{}, 0, id_, true, 0}, error, traces_heap() ? static_cast<int64_t>(held_bytes()) : kNotTraced);
}

void Stream::cut() {
  if (!ended_) send_no_ids("");
}

// An error response from a decoupled step would end the client's whole stream, overtake messages already sent, and leave
// the ensemble's request in flight for good: so the error goes in-band.
void Stream::close(const std::string& error) {
  try {
    if (!error.empty() && !ended_) send_no_ids(error);
  } catch (...) {
    sender().finish();
    throw;
  }
  sender().finish();
}

size_t Stream::held_bytes() const {
  const size_t cache = sequence_ ? sequence_->cache.bytes() : 0;
  return pending_.ids.capacity() * sizeof(int32_t) + tokens_.bytes() + cache;
}

void Stream::log(const Message& message, Memory memory) const {
  const std::vector<int64_t> dims{static_cast<int64_t>(message.ids.size())};
  const char* where = node_.device == nullptr ? nullptr : memory == Memory::kGpu ? "GPU" : "CPU";
  log_message({node_.name, request_.id, id_, message.index, dims, message.end, where});
}

}  // namespace token_stream
