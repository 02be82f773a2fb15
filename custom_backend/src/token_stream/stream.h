// One request on its way: where its tokens come from, its messages, and where they go.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "device.h"
#include "token_stream/guard.h"
#include "token_stream/options.h"
#include "token_stream/rungs.h"
#include "token_stream/transformer.h"

namespace token_stream {

constexpr int64_t kNotTraced = -1;

// Where the ids of a message were handed over: Triton decides, whatever the node asks for.
enum class Memory { kCpu, kGpu };

// Where the responses of one request go. In the server this is Triton; in the tests, a list.
class Sender {
 public:
  virtual ~Sender() = default;
  // Send one response. `error` is empty unless the stream failed; `heap` are the bytes that the node holds, or kNotTraced.
  virtual Memory send(const Message& message, const std::string& error, int64_t heap) = 0;
  // Say that no more responses come. Called once, last.
  virtual void finish() = 0;
  // Whether the client has cancelled the request.
  virtual bool cancelled() = 0;
};

// The tokens of one request as they come from the model. It hands a token out only when the next one has come, or when
// none will: so `last` can say whether the token handed out most recently was the final one.
class TokenQueue {
 public:
  TokenQueue() = default;
  TokenQueue(const Ids& ids, bool complete) : waiting_(ids.begin(), ids.end()), complete_(complete) {}

  void put(std::optional<int32_t> token, bool complete);
  bool ready() const { return complete_ || waiting_.size() > 1; }
  bool last() const { return complete_ && waiting_.empty(); }
  std::optional<int32_t> next();
  // CRC-32 of the tokens handed out so far.
  uint32_t checksum() const { return checksum_; }
  size_t bytes() const { return waiting_.size() * sizeof(int32_t); }

 private:
  std::deque<int32_t> waiting_;
  bool complete_ = false;
  uint32_t checksum_ = 0;
};

// How many more messages the client has room for: it grants new ones as it handles them. A client that grants nothing
// for a time, with nothing left, is taken for lost: an ensemble does not hand a cancellation on to a running step.
class Window {
 public:
  using Clock = std::chrono::steady_clock;

  Window(int64_t key, int64_t messages, double seconds) : key_(key), left_(messages), seconds_(seconds) {}

  int64_t key() const { return key_; }
  bool spent() const { return left_ <= 0; }
  void spend();
  void grant(int64_t messages);
  // Throws std::invalid_argument if the client is lost.
  void check() const;

 private:
  int64_t key_, left_;
  double seconds_;
  Clock::time_point moved_ = Clock::now();
};

// Ids that are held back. An instance on a GPU keeps a copy there, as a backend whose tokens come off the GPU does.
struct Buffer {
  explicit Buffer(const Device* device) : on_device(device) {}

  Ids ids;
  DeviceIds on_device;
};

// What the streams of one model instance share.
struct Node {
  std::string name;
  const Rung* rung;
  TokenBytes tokens;
  Limits limits;
  const Device* device;  // null on a CPU
  Buffer pending;        // of rung 1, which has one buffer for all requests
};

// A sequence in the batch: the rows that the model has not read yet, where they start, and the cache of those it has.
struct Sequence {
  std::vector<int> rows;
  Cache cache;
  int position = 0;
  int64_t left;
  bool ended = false;
};

// What a request asks for.
struct Request {
  std::unique_ptr<Sender> sender;
  std::string id;  // of the client: may be empty, or repeated
  Ids prompt;
  std::optional<Ids> forced;
  int64_t max_tokens = 0;
  Options options;
};

class Stream {
 public:
  Stream(Node& node, Request request);

  // Read the request: forced ids are queued, a prompt waits to join the batch. Throws std::invalid_argument.
  void prepare();

  // Send the next message, if its token has come. False when there are no more.
  bool advance(int64_t held_bytes);
  // Send an end mark, unless it was sent, so that the nodes behind this one forget the stream too.
  void cut();
  // Say that no more responses come; before that, say in-band what went wrong, unless the end mark was sent already.
  void close(const std::string& error);

  // Whether the client has cancelled the request. From then on nothing is sent, and the cache is gone.
  bool look_for_cancel();
  bool cancelled() const { return cancelled_.has_value(); }
  // Whether a cancelled stream may be closed.
  bool settled() const;

  bool waits_for_batch() const { return waits_for_batch_; }
  bool stalled() const { return window_ && window_->spent() && !ended_; }
  bool traces_heap() const { return request_.options.trace_heap; }
  size_t held_bytes() const;

  const Request& request() const { return request_; }
  Sender& sender() { return *request_.sender; }
  TokenQueue& tokens() { return tokens_; }
  std::optional<Window>& window() { return window_; }
  const std::unique_ptr<Sequence>& sequence() const { return sequence_; }
  void join(std::unique_ptr<Sequence> sequence);

 private:
  void check(const Message& message);
  void send(const Message& message, const std::string& error, int64_t heap);
  void send_no_ids(const std::string& error);
  void log(const Message& message, Memory memory) const;
  Buffer& pending() { return node_.rung->buffer_of_instance ? node_.pending : pending_; }

  Node& node_;
  Request request_;
  int64_t id_;  // in-band; the node mints its own
  Buffer pending_;
  TokenQueue tokens_;
  std::unique_ptr<Sequence> sequence_;
  std::optional<Window> window_;
  std::optional<StreamGuard> guard_;
  std::optional<Window::Clock::time_point> cancelled_;
  bool waits_for_batch_ = false, ended_ = false;
  int32_t index_ = 0;
  int64_t sent_ = 0;
};

}  // namespace token_stream
