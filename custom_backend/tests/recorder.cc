#include "recorder.h"

#include <stdexcept>

namespace token_stream {

std::vector<size_t> Record::lengths() const {
  std::vector<size_t> out;
  for (const Sent& one : sent()) out.push_back(one.message.ids.size());
  return out;
}

Ids Record::newest_ids() const {
  Ids out;
  for (const Sent& one : sent()) {
    if (!one.message.ids.empty()) out.push_back(one.message.ids.back());
  }
  return out;
}

std::string Record::error() const {
  const std::vector<Sent> all = sent();
  return all.empty() ? "" : all.back().error;
}

RecordingSender::~RecordingSender() {
  const std::lock_guard<std::mutex> lock(record_->mutex_);
  record_->freed_ = true;
  record_->changed_.notify_all();
}

Memory RecordingSender::send(const Message& message, const std::string& error, int64_t heap) {
  const std::lock_guard<std::mutex> lock(record_->mutex_);
  CHECK_EQUAL(record_->finished_, 0U);
  if (record_->throw_at_ > 0 && record_->sent_.size() + 1 >= record_->throw_at_) throw std::runtime_error("no way");
  record_->sent_.push_back({message, error, heap});
  record_->changed_.notify_all();
  return Memory::kCpu;
}

void RecordingSender::finish() {
  const std::lock_guard<std::mutex> lock(record_->mutex_);
  ++record_->finished_;
  record_->changed_.notify_all();
  if (record_->throw_at_finish_) throw std::runtime_error("no end");
}

bool RecordingSender::cancelled() {
  const std::lock_guard<std::mutex> lock(record_->mutex_);
  if (record_->throw_when_asked_) throw std::runtime_error("no answer");
  return record_->cancelled_ || (record_->cancel_at_ > 0 && record_->sent_.size() >= record_->cancel_at_);
}

Rig::Rig(const std::string& rung, Limits limits, const Device* device)
    : transformer_(checking::file("models/token_stream_latest/recipes.safetensors")),
      node_{"node", &find_rung(rung), TokenBytes(checking::file("models/token_stream_latest/token_bytes.safetensors")),
            limits, device, Buffer(device)},
      engine_(std::make_unique<Engine>(
          node_, transformer_,
          [this](const std::string& text) {
            const std::lock_guard<std::mutex> lock(mutex_);
            errors_.push_back(text);
          },
          [this](size_t streams) {
            const std::lock_guard<std::mutex> lock(mutex_);
            open_streams_.push_back(streams);
          })) {}

std::shared_ptr<Record> Rig::forced(const Ids& ids, const Parameters& parameters) {
  Request request;
  request.forced = ids;
  request.max_tokens = 100'000;
  return submit(std::move(request), parameters);
}

std::shared_ptr<Record> Rig::prompt(const Ids& ids, int64_t max_tokens, const Parameters& parameters) {
  Request request;
  request.prompt = ids;
  request.max_tokens = max_tokens;
  return submit(std::move(request), parameters);
}

std::shared_ptr<Record> Rig::submit(Request request, const Parameters& parameters, std::shared_ptr<Record> record) {
  if (!record) record = std::make_shared<Record>();
  request.sender = std::make_unique<RecordingSender>(record);
  request.options = read_options(parameters, node_.limits);
  engine_->submit(std::move(request));
  return record;
}

std::vector<std::string> Rig::errors() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return errors_;
}

std::vector<size_t> Rig::open_streams() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return open_streams_;
}

const SafeTensors& reference() {
  static const SafeTensors kFile(checking::file("../tests/data/reference_logits.safetensors"));
  return kFile;
}

const Ids& reported() {
  static const Ids kIds{8908, 234, 114, 103081, 99662, 99808, 99219, 9909};
  return kIds;
}

}  // namespace token_stream
