// Continuous batching: all streams of a model instance, moved on together, in a thread of its own.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "token_stream/stream.h"
#include "token_stream/transformer.h"

namespace token_stream {

// Decodes for all its streams together, and sends each of them a message an iteration. A stream may join at any iteration
// and leave at any iteration; one that fails, or is cancelled, ends alone.
//
// Only the engine's thread touches a stream once it was handed over: the others put orders into a queue.
class Engine {
 public:
  // `log_error` is called with what has no stream to be told to, `open_streams` with their number after every turn. Both
  // are called in the engine's thread.
  Engine(Node& node, Transformer& transformer, std::function<void(const std::string&)> log_error,
         std::function<void(size_t)> open_streams);
  // Ends the thread, after what was ordered before; a stream that is still open then ends with an error.
  ~Engine();

  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Take a request: a new stream, or a grant for one.
  void submit(Request request);
  // Answer a request that could not be read.
  void refuse(Request request, std::string error);

 private:
  using Order = std::function<void()>;
  using Streams = std::vector<std::unique_ptr<Stream>>;

  void order(Order order);
  void run();
  bool turn();
  std::vector<Order> take_orders();
  bool can_move(const Stream& stream) const;
  void admit(std::unique_ptr<Stream> stream);
  void grant(Stream& answer);
  Stream* with_key(int64_t key);
  void iterate();
  void let_join();
  void decode();
  std::vector<Stream*> to_decode();
  void accept(Stream& stream, int row);
  void advance_all();
  void end(Stream& stream, const std::string& error);
  void end_all(const std::string& error);
  void close(Stream& stream, const std::string& error);
  void attempt(Stream& stream, const std::function<void()>& move);
  size_t decoded() const;
  int64_t held_bytes() const;

  Node& node_;
  Transformer& transformer_;
  std::function<void(const std::string&)> log_error_;
  std::function<void(size_t)> open_streams_;
  Streams streams_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<Order> orders_;
  bool stopping_ = false;
  std::thread thread_;  // last: it starts when all else is there
};

}  // namespace token_stream
