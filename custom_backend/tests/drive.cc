// Drives the inference node's engine outside the server: streams of given ids, one after another. What is sent is
// printed at once, so that it is there even if a sanitizer ends the process in the middle.
//
//   drive WEIGHTS TOKENS RUNG STREAMS ID...
//
// prints "message STREAM LENGTH HEAP" for each message, and "error STREAM TEXT" for a stream that failed.

#include <cstdio>
#include <cstdlib>
#include <future>
#include <string>

#include "token_stream/engine.h"

namespace token_stream {
namespace {

class NotingSender : public Sender {
 public:
  NotingSender(size_t stream, std::promise<void>& done) : stream_(stream), done_(done) {}

  Memory send(const Message& message, const std::string& error, int64_t heap) override {
    if (error.empty()) {
      std::printf("message %zu %zu %lld\n", stream_, message.ids.size(), static_cast<long long>(heap));
    } else {
      std::printf("error %zu %s\n", stream_, error.c_str());
    }
    std::fflush(stdout);
    return Memory::kCpu;
  }
  void finish() override { done_.set_value(); }
  bool cancelled() override { return false; }

 private:
  size_t stream_;
  std::promise<void>& done_;
};

Limits limits() { return {1'048'576, 134'217'728, 32, 64, 10.0}; }

void drive(Engine& engine, const Ids& ids, std::vector<std::promise<void>>& done) {
  for (size_t stream = 0; stream < done.size(); ++stream) {
    Request request;
    request.sender = std::make_unique<NotingSender>(stream, done[stream]);
    request.forced = ids;
    request.max_tokens = static_cast<int64_t>(ids.size());
    request.options = read_options({{"trace_heap", true}}, limits());
    engine.submit(std::move(request));
    done[stream].get_future().wait();
  }
}

}  // namespace
}  // namespace token_stream

int main(int count, char** words) {
  using namespace token_stream;
  if (count < 6) {
    std::fprintf(stderr, "usage: drive WEIGHTS TOKENS RUNG STREAMS ID...\n");
    return 2;
  }
  try {
    Transformer transformer(words[1]);
    Node node{"drive", &find_rung(words[3]), TokenBytes(words[2]), limits(), nullptr, Buffer(nullptr)};
    std::vector<std::promise<void>> done(std::stoul(words[4]));
    Ids ids;
    for (int at = 5; at < count; ++at) ids.push_back(std::stoi(words[at]));
    Engine engine(
        node, transformer, [](const std::string& text) { std::fprintf(stderr, "drive: %s\n", text.c_str()); },
        [](size_t) {});
    drive(engine, ids, done);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "drive: %s\n", error.what());
    return 2;
  }
  return 0;
}
