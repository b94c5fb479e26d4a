// Fine-tuning of one client's adapters and head on a frozen ViT: what happens inside one step.
// docs/method.md has the mathematics; rounds and epochs are models/training/site_trainer.h's.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/optim/optimizer.h"
#include "engine/tensor/graph.h"
#include "models/config/config.h"
#include "models/training/heads.h"
#include "models/training/penalty.h"

namespace orthofed {

struct Batch;  // engine/data/loader.h

struct FineTuneOptions {
  bool general = true, personal = true;  // which adapters the method trains
  HeadKind head = HeadKind::shared;
  int64_t classes = 0;
  uint64_t seed = 0;
  std::string client;  // key of the personal draw and of personal dropout
  LoraConfig lora;
  PenaltyConfig penalty;
  TrainConfig train;
};

// Which parameters a step updates. `general` and `personal` are the two phases of the alternating
// schedule: general with the personal branch off, personal with everything general frozen.
enum class Phase { joint, general, personal };

struct StepResult {
  double loss = 0;     // cross-entropy + ramped penalties, mean over the batch
  double ce = 0;       // cross-entropy alone
  double norm = 0;     // of the gradient, before clipping
  int64_t images = 0;  // real ones, without padding
};

class FineTuner {
 public:
  // Attaches adapters and heads; nothing is drawn yet (draw_general, draw_personal).
  FineTuner(std::unique_ptr<Vit> model, const FineTuneOptions& options);
  ~FineTuner();

  Vit& model() { return *model_; }
  const Vit& model() const { return *model_; }
  const FineTuneOptions& options() const { return options_; }

  // The server's draw: A_g and the shared head, from (seed, layer). The client's draw: A_p and what
  // stays home, from (seed, client, layer), after the first broadcast was loaded.
  void draw_general();
  void draw_personal();

  // What the server averages: the general adapter, and the head if it is shared.
  TensorMap general() const;
  void load_general(const TensorMap& tensors);
  // What stays at the client: the personal adapter and the personal head, if there is one.
  TensorMap personal() const;
  void load_personal(const TensorMap& tensors);
  TensorMap optimizer_state() const;
  void load_optimizer_state(const TensorMap& tensors);
  void reset_optimizer(bool general, bool personal);

  // Images of each class in the training set, for class_weights = inverse | logit_adjust.
  void set_class_counts(const std::vector<int64_t>& counts);

  // The gradient of loss * images over the micro-batches, left in the parameters (what step() does
  // first); StepResult without the norm.
  StepResult gradients(const std::vector<const Batch*>& micro_batches, double ramp, Phase phase,
                       uint64_t index, bool measure_features = false);

  // One optimiser step on micro-batches whose gradients are summed. progress: u in [0, 1] of the
  // whole run, which sets the learning rate; ramp in [0, 1] of the penalties; index numbers the
  // step for personal dropout. measure_features: also evaluate the features penalty (penalties()).
  // Nothing is read back from the device while a step runs. start_step returns as soon as a GPU has
  // its work, with the batches free to be used again; it throws UserError naming a batch that fits
  // where the device runs out of memory. finish_step waits for the step's numbers, and throws Error
  // if the loss or the norm is not finite. Where the norm is not, the device has left parameters
  // and moments as they were.
  void start_step(const std::vector<const Batch*>& micro_batches, double progress, double ramp,
                  Phase phase, uint64_t index, bool measure_features = false);
  StepResult finish_step();
  StepResult step(const std::vector<const Batch*>& micro_batches, double progress, double ramp,
                  Phase phase, uint64_t index, bool measure_features = false) {
    start_step(micro_batches, progress, ramp, phase, index, measure_features);
    return finish_step();
  }
  // Runs a joint step on the micro-batches that make() returns, and another one without the
  // personal adapter if steps may drop it, to see whether they fit: throws OutOfMemory where they
  // do not. The memory of earlier steps is freed first. Parameters and gradients are worth nothing
  // afterwards.
  void try_step(const std::function<std::vector<Batch>()>& make);

  const ParameterGroup& parameters(AdapterKind kind) const {
    return kind == AdapterKind::general ? general_group_ : personal_group_;
  }
  // How steps have run; null where they are not captured (train.graph, engine/tensor/graph.h).
  const StepGraphs::Counts* graph_counts() const {
    return graphs_ != nullptr ? &graphs_->counts() : nullptr;
  }
  // Every kind's value now, for the log; features as of the last step that measured it.
  PenaltyValues penalties();

  // [batch, classes], on the CPU. personal off: the general model alone (METHOD.md's `general`
  // metrics). A batch that does not fit into the device's memory is scored in halves; throws
  // UserError if not even one image fits.
  Tensor logits(const Tensor& patches, int64_t batch, bool personal = true);

 private:
  // A kind of step: what decides which kernels run and on which memory. All else is numbers, which
  // the kernels read from the device's memory.
  struct Kind {
    Phase phase = Phase::joint;
    bool personal_active = false;  // the branch is on: neither switched off nor dropped
    bool features = false;         // the features penalty is measured
    std::vector<int64_t> images = {}, valid = {};  // of each micro-batch, with and without padding
    auto operator<=>(const Kind&) const = default;
    StepGraphs::Key key() const;
  };
  // Its numbers on the device, at the same addresses in every step. So are the inputs, which all
  // kinds share: those of micro-batch j with so many images.
  struct Step;
  struct Input {
    Tensor patches, labels, weights;
  };
  Step& prepare(const std::vector<const Batch*>& micro_batches, double learning_rate, double ramp,
                Phase phase, uint64_t index, bool measure_features);
  void queue_gradients(Step& step);
  void queue_step(Step& step);  // and the optimiser's
  StepResult result_of(const Step& step);
  void clear_gradients();

  void refresh_adapters();  // those that are active, as they are now
  Tensor logits_at_once(const Tensor& patches, int64_t batch, bool personal);
  void set_phase(Phase phase, bool personal_active);
  bool dropped(uint64_t index) const;  // is the personal adapter off in this step?

  std::unique_ptr<Vit> model_;
  FineTuneOptions options_;
  std::vector<Linear*> adapted_;  // layers with adapters
  std::unique_ptr<Heads> heads_;
  std::unique_ptr<Penalties> penalties_;
  ParameterGroup general_group_, personal_group_;
  Optimizer optimizer_;
  Tensor class_weights_, prior_;
  std::map<Kind, std::unique_ptr<Step>> steps_;
  std::map<std::pair<size_t, int64_t>, Input> inputs_;
  std::unique_ptr<StepGraphs> graphs_;  // null: every step runs by itself
  Step* started_ = nullptr;             // and not finished
  double last_features_ = 0;
  bool features_measured_ = false;
};

}  // namespace orthofed
