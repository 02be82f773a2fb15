// A sender that writes down what it was given, and what tests of the engine need around it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "check.h"
#include "safetensors.h"
#include "token_stream/engine.h"

namespace token_stream {

struct Sent {
  Message message;
  std::string error;
  int64_t heap;
};

// What came of one stream. The test holds it, and so does the sender, which is the engine's.
class Record {
  template <typename Work>
  auto locked(const Work& work) const {  // first, so that its type is known below
    const std::lock_guard<std::mutex> lock(mutex_);
    return work();
  }

 public:
  std::vector<Sent> sent() const { return locked([this] { return sent_; }); }
  size_t count() const { return locked([this] { return sent_.size(); }); }
  size_t finished() const { return locked([this] { return finished_; }); }
  bool freed() const { return locked([this] { return freed_; }); }

  void cancel() { locked([this] { cancelled_ = true; return 0; }); }
  void cancel_at(size_t messages) { locked([&] { return cancel_at_ = messages; }); }
  // From the message with this number on (from 1), send throws; 0 for never.
  void throw_at(size_t message) { locked([&] { return throw_at_ = message; }); }
  void throw_at_finish() { locked([this] { return throw_at_finish_ = true; }); }
  void throw_when_asked() { locked([this] { return throw_when_asked_ = true; }); }

  // Each waits until it is so, 60 s at most; then a check fails.
  void await_count(size_t messages) { await([&] { return sent_.size() >= messages; }, "the messages came"); }
  void await_finish() { await([&] { return finished_ > 0; }, "the stream ended"); }
  void await_free() { await([&] { return freed_; }, "the sender was freed"); }

  std::vector<size_t> lengths() const;
  Ids newest_ids() const;  // the last id of each message
  std::string error() const;

 private:
  friend class RecordingSender;

  template <typename Condition>
  void await(const Condition& condition, const char* what) {
    std::unique_lock<std::mutex> lock(mutex_);
    const bool came = changed_.wait_for(lock, std::chrono::seconds(60), condition);
    checking::count(came, __FILE__, __LINE__, what);
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Sent> sent_;
  size_t finished_ = 0, cancel_at_ = 0, throw_at_ = 0;
  bool freed_ = false, cancelled_ = false, throw_at_finish_ = false, throw_when_asked_ = false;
};

class RecordingSender : public Sender {
 public:
  explicit RecordingSender(std::shared_ptr<Record> record) : record_(std::move(record)) {}
  ~RecordingSender() override;
  Memory send(const Message& message, const std::string& error, int64_t heap) override;
  void finish() override;
  bool cancelled() override;

 private:
  std::shared_ptr<Record> record_;
};

// A node with one rung, and its engine.
class Rig {
 public:
  explicit Rig(const std::string& rung, Limits limits = kLimits, const Device* device = nullptr);

  static constexpr Limits kLimits{1'048'576, 134'217'728, 32, 64, 10};

  std::shared_ptr<Record> forced(const Ids& ids, const Parameters& parameters = {});
  std::shared_ptr<Record> prompt(const Ids& ids, int64_t max_tokens = 256, const Parameters& parameters = {});
  std::shared_ptr<Record> submit(Request request, const Parameters& parameters,
                                 std::shared_ptr<Record> record = nullptr);

  Engine& engine() { return *engine_; }
  Node& node() { return node_; }
  void unload() { engine_.reset(); }
  std::vector<std::string> errors() const;
  std::vector<size_t> open_streams() const;

 private:
  Transformer transformer_;
  Node node_;
  mutable std::mutex mutex_;
  std::vector<std::string> errors_;
  std::vector<size_t> open_streams_;
  std::unique_ptr<Engine> engine_;
};

const SafeTensors& reference();
const Ids& reported();

}  // namespace token_stream
