// Random histories of a store against a plain list of rows; whatever happened,
// attention over a session has the bits of attention over one tensor.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/executor.h"
#include "kernel/attention.h"
#include "kernel/key_values.h"
#include "sessions/session_store.h"
#include "tests/sessions/rows.h"

namespace attention {
namespace {

constexpr char kOwner[] = "me";

struct Layer {
  Tokens tokens;  // all of them, also those that are released
  int64_t first = 0;
};

struct Model {
  std::vector<Layer> layers;
  LeaseTime expires;
};

// A reader, and what it must go on seeing.
struct Held {
  LayerSnapshot snapshot;
  Layer layer;
};

class History {
 public:
  explicit History(uint32_t seed) : random_(seed) {
    config_.num_layers = Number(1, 3);
    config_.format = {.kv_heads = Number(1, 3),
                      .key_size = Number(1, 9),
                      .value_size = Number(1, 9)};
    config_.lease = absl::Seconds(60);
    if (seed % 2 == 1) {
      config_.retain_window.resize(config_.num_layers);
      for (int64_t& window : config_.retain_window) {
        window = Number(0, 2) == 0 ? 0 : Number(1, 400);
      }
      config_.rollback_tokens = Number(0, 300);
    }
    store_ = std::make_unique<SessionStore>(
        SessionStore::Limits{.bytes = Number(20, 400) << 10, .sessions = 8},
        PoisonedPool(1 << 20));
  }

  void Run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE(absl::StrCat("step ", i));
      Step();
      now_ += absl::Seconds(Number(0, 3));
    }
    Check();
    held_.clear();
    for (const auto& [id, model] : models_) store_->Delete(kOwner, id);
    EXPECT_EQ(store_->totals().bytes, 0);
    EXPECT_EQ(store_->totals().sessions, 0);
  }

 private:
  int64_t Number(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }
  std::string Id() { return absl::StrCat("s", Number(0, 9)); }

  // Null if there is none, or it has expired.
  Model* Find(const std::string& id) {
    const auto found = models_.find(id);
    return found == models_.end() || found->second.expires <= now_
               ? nullptr
               : &found->second;
  }
  size_t Live() const {
    return std::count_if(models_.begin(), models_.end(), [&](const auto& each) {
      return each.second.expires > now_;
    });
  }

  void Step() {
    switch (Number(0, 11)) {
      case 0:
        return Create();
      case 1:
        return Fork();
      case 2:
        return Truncate();
      case 3:
        return Delete();
      case 4:
        store_->EvictExpired(now_);
        return;
      case 5:
        return Hold();
      case 6:
        return Check();
      default:
        return Append();
    }
  }

  void Create() {
    store_->EvictExpired(now_);
    const std::string id = Id();
    const bool exists = Find(id) != nullptr;
    const auto session = store_->Create(kOwner, id, config_, now_);
    if (!exists && Live() == 8) {
      EXPECT_TRUE(SessionStore::IsOfNumber(session.status()));
      return;
    }
    if (!exists && absl::IsResourceExhausted(session.status())) {
      EXPECT_FALSE(SessionStore::IsOfNumber(session.status()));
      return;  // No room for its layers.
    }
    ASSERT_TRUE(session.ok()) << session.status();
    if (!exists) {
      models_[id].layers.clear();
      models_[id].layers.resize(config_.num_layers);
    }
    models_[id].expires = now_ + config_.lease;
  }

  std::shared_ptr<Session> Use(const std::string& id) {
    Model* const model = Find(id);
    const auto session = store_->Use(kOwner, id, now_);
    EXPECT_EQ(session.ok(), model != nullptr) << session.status();
    if (!session.ok() || model == nullptr) return nullptr;
    model->expires = now_ + config_.lease;
    return *session;
  }

  void Append() {
    const std::string id = Id();
    const auto session = Use(id);
    if (session == nullptr) return;
    const int64_t layer = Number(0, config_.num_layers - 1);
    Layer& state = Find(id)->layers[layer];
    Tokens& model = state.tokens;
    const int64_t count = Number(0, 3) == 0 ? Number(0, 600) : Number(0, 20);
    const Tokens tokens = Tokens::Random(config_.format, count, random_);
    const std::string request_id = absl::StrCat("r", ++requests_);
    const Session::AppendRequest request = {.tokens = count,
                                            .expected_length = model.count,
                                            .request_id = request_id};
    auto append = session->BeginAppend(layer, request);
    if (!append.ok()) {
      EXPECT_TRUE(absl::IsResourceExhausted(append.status()))
          << append.status();
      return;
    }
    Write(*append, tokens);
    Layer longer = state;
    longer.tokens.Add(tokens);
    if (Number(0, 3) == 0) {
      // Every new token has a query.
      CheckAttention(append->Written(), longer.tokens, count);
    }
    if (Number(0, 4) == 0) return;  // given up
    ASSERT_EQ(std::move(*append).Publish(), absl::OkStatus());
    state = std::move(longer);
    if (const int64_t window = config_.window(layer); window > 0 && count > 0) {
      const int64_t kept = window + config_.rollback_tokens;
      state.first =
          std::max(state.first, std::max<int64_t>(0, model.count - kept) /
                                    kKeyBlock * kKeyBlock);
    }
    if (Number(0, 4) > 0) return;
    // The same again.
    auto again = session->BeginAppend(layer, request);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_TRUE(again->done());
  }

  void Truncate() {
    const std::string id = Id();
    const auto session = Use(id);
    if (session == nullptr) return;
    std::vector<Layer>& layers = Find(id)->layers;
    int64_t shortest = layers[0].tokens.count;
    int64_t least = 0;
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      shortest = std::min(shortest, layers[i].tokens.count);
      if (layers[i].first > 0) {
        least = std::max(least, layers[i].first + config_.window(i));
      }
    }
    const int64_t length =
        Number(0, 9) == 0
            ? 0
            : Number(std::max<int64_t>(0, shortest - 300), shortest);
    EXPECT_TRUE(absl::IsInvalidArgument(session->Truncate(shortest + 1)));
    const absl::Status status = session->Truncate(length);
    if (length > 0 && length < least) {
      EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
      EXPECT_EQ(LeastLength(status), least);
      return;
    }
    ASSERT_EQ(status, absl::OkStatus());
    for (Layer& layer : layers) {
      layer.tokens.Truncate(config_.format, length);
      if (length == 0) layer.first = 0;
    }
  }

  void Fork() {
    store_->EvictExpired(now_);
    const SessionStore::ForkRequest forks[] = {{Id(), Id()}};
    Model* const source = Find(forks[0].source);
    const bool exists = Find(forks[0].target) != nullptr;
    const auto made = store_->Fork(kOwner, forks, now_);
    if (source == nullptr) {
      EXPECT_TRUE(absl::IsNotFound(made.status())) << made.status();
    } else if (exists) {
      EXPECT_TRUE(absl::IsAlreadyExists(made.status())) << made.status();
    } else if (Live() == 8) {
      EXPECT_TRUE(absl::IsResourceExhausted(made.status())) << made.status();
    } else if (absl::IsResourceExhausted(made.status())) {
      EXPECT_FALSE(SessionStore::IsOfNumber(made.status()));
    } else {
      ASSERT_TRUE(made.ok()) << made.status();
      source->expires = now_ + config_.lease;
      const Model copy = *source;
      models_[forks[0].target] = copy;
    }
  }

  void Delete() {
    const std::string id = Id();
    store_->EvictExpired(now_);
    EXPECT_EQ(store_->Delete(kOwner, id), Find(id) != nullptr);
    models_.erase(id);
  }

  void Hold() {
    const std::string id = Id();
    const auto session = Use(id);
    if (session == nullptr) return;
    const int64_t layer = Number(0, config_.num_layers - 1);
    held_.push_back({*session->Read(layer), Find(id)->layers[layer]});
    if (held_.size() > 4) held_.erase(held_.begin());
  }

  void Check() {
    for (const Held& held : held_) {
      EXPECT_TRUE(Holds(held.snapshot, held.layer.tokens))
          << "held by a reader";
      EXPECT_EQ(held.snapshot.first_token(), held.layer.first);
    }
    for (const auto& [id, model] : models_) {
      if (model.expires <= now_) continue;
      const auto session = store_->Find(kOwner, id, now_);
      ASSERT_TRUE(session.ok()) << session.status();
      for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
        const LayerSnapshot snapshot = *(*session)->Read(layer);
        const Layer& of_model = model.layers[layer];
        ASSERT_TRUE(Holds(snapshot, of_model.tokens)) << id;
        ASSERT_EQ(snapshot.first_token(), of_model.first) << id;
        CheckAttention(snapshot, of_model.tokens, 1);
      }
    }
  }

  // Queries over the session's pages, and over one tensor.
  void CheckAttention(const LayerSnapshot& snapshot, const Tokens& tokens,
                      int64_t queries) {
    const PageFormat& format = config_.format;
    const int64_t heads = format.kv_heads * 2;
    std::vector<float> query(queries * heads * format.key_size);
    for (float& number : query)
      number = std::normal_distribution<float>()(random_);
    AttentionInputs inputs;
    const auto view_of = [](const std::vector<float>& numbers,
                            std::initializer_list<int64_t> shape) {
      ConstTensorView view;
      view.type = DataType::kFloat32;
      view.shape = shape;
      view.data = numbers.data();
      return view;
    };
    inputs.query = view_of(query, {1, queries, heads, format.key_size});
    inputs.key = view_of(tokens.keys,
                         {1, tokens.count, format.kv_heads, format.key_size});
    inputs.value = view_of(
        tokens.values, {1, tokens.count, format.kv_heads, format.value_size});
    AttentionOptions options;
    options.layout = Layout::kBSHD;
    options.causal = Causal::kBottomRight;
    options.window_left = snapshot.window() - 1;
    const auto plan = PlanAttention(inputs, options);
    ASSERT_TRUE(plan.ok()) << plan.status();
    std::vector<float> wanted(queries * heads * format.value_size);
    std::vector<float> got(wanted.size());
    ASSERT_EQ(RunAttention(*plan, {.output = wanted.data()}, executor_),
              absl::OkStatus());
    inputs.key.data = inputs.value.data = nullptr;
    const auto without_keys = PlanAttention(inputs, options);
    ASSERT_TRUE(without_keys.ok()) << without_keys.status();
    const KeyValueView view = snapshot.view();
    const auto over_pages =
        WithKeys(*without_keys, absl::MakeConstSpan(&view, 1));
    ASSERT_TRUE(over_pages.ok()) << over_pages.status();
    ASSERT_EQ(RunAttention(*over_pages, {.output = got.data()}, executor_),
              absl::OkStatus());
    EXPECT_EQ(wanted, got);
  }

  std::mt19937 random_;
  SessionConfig config_;
  std::unique_ptr<SessionStore> store_;
  LeaseTime now_{absl::Seconds(1000)};
  int64_t requests_ = 0;
  std::map<std::string, Model> models_;
  std::vector<Held> held_;
  Executor executor_{0};
};

TEST(SessionHistoryTest, IsThatOfPlainLists) {
  for (uint32_t seed = 0; seed < 60 && !testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    History(seed).Run(120);
  }
}

}  // namespace
}  // namespace attention
