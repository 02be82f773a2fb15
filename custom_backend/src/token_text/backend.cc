// The backend `token_text`: the post-processing node. Token ids to text, incrementally, one response for each request.

#include <condition_variable>
#include <thread>

#include "node_log.h"
#include "token_text/decoder.h"
#include "triton.h"

namespace token_stream {
namespace {

constexpr int64_t kMostSeconds = 1'000'000;

bool is_on(const Parameters& parameters, const std::string& option) {
  const auto found = parameters.find(option);
  return found != parameters.end() && found->second == Parameter(true);
}

Input required_input(TRITONBACKEND_Request* request, const char* name, size_t least_bytes) {
  std::optional<Input> input = read_input(request, name);
  if (!input || input->bytes.size() < least_bytes) throw std::invalid_argument(std::string(name) + " is missing");
  return std::move(*input);
}

// Drops idle streams from time to time, and keeps the gauge of open ones.
class Sweeper {
 public:
  Sweeper(DecoderTable& table, StreamGauge& gauge, std::chrono::milliseconds every)
      : thread_([this, &table, &gauge, every] {
          std::unique_lock<std::mutex> lock(mutex_);
          while (!stopped_.wait_for(lock, every, [this] { return stopping_; })) gauge.set(table.sweep());
        }) {}

  ~Sweeper() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    stopped_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::thread thread_;  // last: it starts when all else is there
};

// One instance of the model: its table of tokens, and the decoder of every open stream.
class Instance {
 public:
  Instance(TRITONBACKEND_Model* model, TRITONBACKEND_ModelInstance* instance, const ModelParameters& parameters)
      : instance_(instance),
        name_(model_name(model)),
        tokens_(model_file(model, parameters, "tokens")),
        idle_(std::chrono::seconds(parameters.number("idle_seconds", 1, kMostSeconds))),
        decoders_(idle_),
        gauge_(model, instance),
        sweeper_(decoders_, gauge_, idle_ / 10) {}

  void execute(TRITONBACKEND_Request* request) {
    const uint64_t began = now_ns();
    TRITONBACKEND_Response* response = nullptr;
    check(TRITONBACKEND_ResponseNew(&response, request));
    TRITONSERVER_Error* error = guarded([&] { fill(response, request); });
    const bool well = error == nullptr;
    check(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
    if (!well) TRITONSERVER_ErrorDelete(error);
    const uint64_t now = now_ns();
    tolerate(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request, well, began, began, now, now),
             "report a request");
    tolerate(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, 1, began, began, now, now),
             "report an execution");
  }

 private:
  void fill(TRITONBACKEND_Response* response, TRITONBACKEND_Request* request) {
    const Input ids_input = required_input(request, "TOKEN_IDS", 0);
    const int64_t stream = values<int64_t>(required_input(request, "STREAM_ID", sizeof(int64_t))).front();
    const bool end = required_input(request, "END", 1).bytes.front() != 0;
    const Ids ids = values<int32_t>(ids_input);
    const Parameters parameters = read_parameters(request);
    if (is_on(parameters, "log")) {
      const char* id = nullptr;
      check(TRITONBACKEND_RequestId(request, &id));
      log_message({name_, id == nullptr ? "" : id, stream, std::nullopt, ids_input.dims, end});
    }
    const bool dims_only = is_on(parameters, "dims_only");
    const std::string text = element(dims_only ? "" : decode(stream, ids, end));
    const Ids received = dims_only ? Ids{} : ids;
    const std::set<std::string> wanted = requested_outputs(request);
    const auto put_wanted = [&](const Output& output) {
      if (wanted.count(output.name) > 0) put(response, output);
    };
    put_wanted({"TEXT", TRITONSERVER_TYPE_BYTES, {1}, text.data(), text.size()});
    put_wanted(output("RECEIVED_IDS", received));
    put_wanted(output("RECEIVED_DIMS", ids_input.dims));
  }

  std::string decode(int64_t stream, const Ids& ids, bool end) {
    try {
      tokens_.check(ids);
    } catch (...) {
      decoders_.drop(stream);  // an error response ends the client's stream, so no end mark will come
      throw;
    }
    std::string bytes;
    for (const int32_t id : ids) bytes += tokens_[id];
    return decoders_.decode(stream, bytes, end);
  }

  TRITONBACKEND_ModelInstance* instance_;
  std::string name_;
  TokenBytes tokens_;
  std::chrono::milliseconds idle_;
  DecoderTable decoders_;
  StreamGauge gauge_;
  Sweeper sweeper_;  // last: it ends first
};

}  // namespace
}  // namespace token_stream

// --- what Triton calls ------------------------------------------------------------------------------------------------

#include "entry_points.h"

extern "C" {

// Every request is answered and released here, whatever becomes of it.
TRITONBACKEND_ISPEC TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                           TRITONBACKEND_Request** requests,
                                                                           const uint32_t request_count) {
  return guarded([&] {
    auto* made = held_by<Instance>(TRITONBACKEND_ModelInstanceState, instance);
    for (uint32_t i = 0; i < request_count; ++i) {
      tolerate(guarded([&] { made->execute(requests[i]); }), "answer a request");
      tolerate(TRITONBACKEND_RequestRelease(requests[i], TRITONSERVER_REQUEST_RELEASE_ALL), "release a request");
    }
  });
}

}  // extern "C"
