#include "token_stream/engine.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace token_stream {
namespace {

constexpr std::chrono::milliseconds kLook{10};  // while no stream can move: how often each is asked for its client

std::string explain(const std::exception& error) {
  if (dynamic_cast<const std::invalid_argument*>(&error) != nullptr) return error.what();
  return std::string("internal error: ") + error.what();
}

}  // namespace

Engine::Engine(Node& node, Transformer& transformer, std::function<void(const std::string&)> log_error,
               std::function<void(size_t)> open_streams)
    : node_(node),
      transformer_(transformer),
      log_error_(std::move(log_error)),
      open_streams_(std::move(open_streams)),
      thread_([this] { run(); }) {}

Engine::~Engine() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  arrived_.notify_one();
  thread_.join();
}

void Engine::submit(Request request) {
  // A std::function must be copyable, so the stream travels in a shared pointer.
  auto holder = std::make_shared<std::unique_ptr<Stream>>(std::make_unique<Stream>(node_, std::move(request)));
  order([this, holder] { admit(std::move(*holder)); });
}

void Engine::refuse(Request request, std::string error) {
  auto stream = std::make_shared<Stream>(node_, std::move(request));
  order([this, stream, error = std::move(error)] { close(*stream, error); });
}

void Engine::order(Order order) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    orders_.push_back(std::move(order));
  }
  arrived_.notify_one();
}

void Engine::run() {
  bool going = true;
  while (going) {
    try {
      going = turn();
    } catch (const std::exception& error) {  // a fault of the engine itself: nobody may wait for ever
      log_error_(std::string("the engine failed: ") + error.what());
      end_all(explain(error));
    }
  }
}

// Carry out what was ordered meanwhile, then one iteration. False once the engine is to stop.
bool Engine::turn() {
  for (const Order& order : take_orders()) {
    try {
      order();
    } catch (const std::exception& error) {  // the others must still be carried out
      log_error_(std::string("an order failed: ") + error.what());
    }
  }
  bool stopping = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping = stopping_ && orders_.empty();
  }
  if (stopping) {
    end_all("internal error: the model was unloaded");
  } else {
    iterate();
  }
  open_streams_(streams_.size());
  return !stopping;
}

std::vector<Engine::Order> Engine::take_orders() {
  const bool moving = std::any_of(streams_.begin(), streams_.end(), [this](const auto& one) { return can_move(*one); });
  const auto woken = [this] { return stopping_ || !orders_.empty(); };
  std::unique_lock<std::mutex> lock(mutex_);
  if (!moving && streams_.empty()) {
    arrived_.wait(lock, woken);
  } else if (!moving) {
    arrived_.wait_for(lock, kLook, woken);
  }
  return std::exchange(orders_, {});
}

bool Engine::can_move(const Stream& stream) const {
  if (stream.cancelled()) return false;
  if (stream.waits_for_batch()) return decoded() < node_.limits.max_streams;
  return !stream.stalled();
}

void Engine::admit(std::unique_ptr<Stream> stream) {
  const Options& options = stream->request().options;
  attempt(*stream, [&] {
    if (options.grant) {
      grant(*stream);
      return;
    }
    stream->prepare();
    if (streams_.size() >= node_.limits.max_streams + node_.limits.max_waiting) {
      throw std::invalid_argument("the node is full: " + std::to_string(node_.limits.max_streams) +
                                  " streams are decoded and " + std::to_string(node_.limits.max_waiting) +
                                  " wait; try again later");
    }
    if (options.window && with_key(*options.window_key) != nullptr) {
      throw std::invalid_argument("the window key " + std::to_string(*options.window_key) +
                                  " is in use; take another");
    }
    streams_.push_back(std::move(stream));
  });
}

void Engine::grant(Stream& answer) {
  const Options& options = answer.request().options;
  Stream* stream = with_key(*options.window_key);
  if (stream == nullptr) {
    throw std::invalid_argument("no stream has the window key " + std::to_string(*options.window_key) +
                                "; it may have ended");
  }
  if (*options.grant > 0) {
    stream->window()->grant(*options.grant);
  } else if (!stream->look_for_cancel()) {  // otherwise it is being closed already
    attempt(*stream, [&] {
      stream->cut();
      end(*stream, "");
    });
  }
  close(answer, "");
}

Stream* Engine::with_key(int64_t key) {
  for (const auto& stream : streams_) {
    if (stream->window() && stream->window()->key() == key) return stream.get();
  }
  return nullptr;
}

// Let waiting streams join, decode for those that lack a token, and move every stream on by one message.
void Engine::iterate() {
  let_join();
  decode();
  advance_all();
}

void Engine::let_join() {
  for (size_t at = 0; at < streams_.size() && decoded() < node_.limits.max_streams;) {
    Stream& stream = *streams_[at];
    const size_t before = streams_.size();
    if (stream.waits_for_batch()) {
      attempt(stream, [&] {
        std::vector<int> rows = transformer_.prompt_rows(stream.request().prompt);
        const int64_t left = std::min<int64_t>(stream.request().max_tokens, kContext - static_cast<int64_t>(rows.size()));
        stream.join(std::make_unique<Sequence>(Sequence{std::move(rows), transformer_.new_cache(), 0, left}));
      });
    }
    if (streams_.size() == before) ++at;  // one that failed is gone, and the next one stands in its place
  }
}

size_t Engine::decoded() const {
  return static_cast<size_t>(std::count_if(streams_.begin(), streams_.end(), [](const auto& one) {
    return one->sequence() && !one->sequence()->ended;
  }));
}

// The streams that lack a token. To read a prompt takes time with its length: a crowd of newcomers may take, together, no
// longer than the longest prompt there can be, so that they do not hold up those in the middle of their texts.
std::vector<Stream*> Engine::to_decode() {
  std::vector<Stream*> chosen;
  size_t prompts = 0;
  for (const auto& stream : streams_) {
    const auto& sequence = stream->sequence();
    if (!sequence || sequence->ended || stream->tokens().ready()) continue;
    if (sequence->position == 0 && (prompts += sequence->rows.size()) > kContext) continue;
    chosen.push_back(stream.get());
  }
  return chosen;
}

void Engine::decode() {
  const std::vector<Stream*> chosen = to_decode();
  if (chosen.empty()) return;
  std::vector<Slot> slots;
  for (Stream* stream : chosen) {
    Sequence& sequence = *stream->sequence();
    for (const int row : sequence.rows) slots.push_back({row, sequence.position++, &sequence.cache, false});
    slots.back().choose = true;
  }
  const std::vector<int> rows = transformer_.read(slots);
  for (size_t i = 0; i < chosen.size(); ++i) accept(*chosen[i], rows[i]);
}

void Engine::accept(Stream& stream, int row) {
  Sequence& sequence = *stream.sequence();
  const int32_t token = transformer_.id(row);
  const bool end_token = token == transformer_.eos();
  sequence.rows = {row};
  sequence.ended = --sequence.left == 0 || end_token;
  if (sequence.ended) sequence.cache = {};  // nothing will be read from it any more
  stream.tokens().put(end_token ? std::nullopt : std::optional<int32_t>(token), sequence.ended);
}

void Engine::advance_all() {
  std::vector<Stream*> present;
  for (const auto& stream : streams_) present.push_back(stream.get());
  for (Stream* stream : present) {
    attempt(*stream, [&] {
      const int64_t held = stream->traces_heap() ? held_bytes() : kNotTraced;
      const bool over = stream->look_for_cancel() ? stream->settled() : !stream->advance(held);
      if (over) end(*stream, "");
    });
  }
}

int64_t Engine::held_bytes() const {
  size_t bytes = node_.pending.ids.capacity() * sizeof(int32_t);
  for (const auto& stream : streams_) bytes += stream->held_bytes();
  return static_cast<int64_t>(bytes);
}

// A stream that fails ends alone, with what went wrong.
void Engine::attempt(Stream& stream, const std::function<void()>& move) {
  try {
    move();
  } catch (const std::exception& error) {
    end(stream, explain(error));
  }
}

// Close a stream, and forget it: this frees all that it held.
void Engine::end(Stream& stream, const std::string& error) {
  close(stream, error);
  const auto same = [&](const auto& one) { return one.get() == &stream; };
  streams_.erase(std::remove_if(streams_.begin(), streams_.end(), same), streams_.end());
}

void Engine::end_all(const std::string& error) {
  while (!streams_.empty()) end(*streams_.back(), error);
}

void Engine::close(Stream& stream, const std::string& error) {
  try {
    stream.close(error);
  } catch (const std::exception& failure) {  // Triton takes no answer from this one: the others go on
    log_error_(std::string("a stream could not be closed: ") + failure.what());
  }
}

}  // namespace token_stream
