// The costs in the contracts, against numbers worked out by hand at small sizes.
#include "kernels/core/cost.h"

#include <gtest/gtest.h>

#include "kernels/attention/attention.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/gelu/gelu.h"
#include "kernels/grad_norm/grad_norm.h"
#include "kernels/image/image.h"
#include "kernels/layer_norm/layer_norm.h"
#include "kernels/lora/lora.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul_fp8/matmul_fp8.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/orthogonality/orthogonality.h"
#include "kernels/patch_embed/patch_embed.h"
#include "kernels/reduction/reduction.h"
#include "kernels/residual/residual.h"
#include "kernels/rope/rope.h"
#include "kernels/softmax/softmax.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/token_mean/token_mean.h"

namespace orthofed::test {
namespace {

// Costs look at whether pointers are null, never at elements.
bf16 h[1];    // 2 bytes an element
float f[1];   // 4
double d[1];  // 8
int32_t labels[1];

testing::AssertionResult is(const Cost& c, double flops, double bytes) {
  if (c.flops == flops && c.bytes == bytes) return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << c.flops << " flops and " << c.bytes << " bytes, not " << flops << " and " << bytes;
}

TEST(Cost, AnAbsentArgumentCostsNothing) {
  EXPECT_EQ(cost::moved(h, 3), 6);
  EXPECT_EQ(cost::moved<float>(nullptr, 3), 0);
  EXPECT_EQ(cost::written(f, 3), 12);
  EXPECT_EQ(cost::written(f, 3, true), 24);
}

TEST(Cost, Attention) {  // 2 images of 5 tokens, 3 heads of 4: 10 rows of 12
  const AttentionShape s{.batch = 2, .tokens = 5, .heads = 3, .head_dim = 4};
  AttentionForward<bf16> a{.qkv = h, .out = h, .lse = f, .shape = s, .scale = 1};
  EXPECT_TRUE(is(cost::attention_forward(a), 4 * 25 * 4 * 6, 2 * 360 + 2 * 120 + 4 * 30));
  a.lse = nullptr;
  EXPECT_TRUE(is(cost::attention_forward(a), 2400, 960));
  EXPECT_TRUE(is(cost::attention_backward(AttentionBackward<bf16>{
                     .qkv = h, .out = h, .dout = h, .lse = f, .dqkv = h, .shape = s, .scale = 1}),
                 6000, 2 * (360 + 120 + 120 + 360) + 4 * 30));
}

TEST(Cost, CrossEntropy) {
  CrossEntropy<float> a{.logits = f,
                        .ld = 7,
                        .labels = labels,
                        .weights = f,
                        .loss = f,
                        .dlogits = f,
                        .ldd = 7,
                        .batch = 3,
                        .classes = 7};
  EXPECT_TRUE(is(cost::cross_entropy(a), 50 * 21, 84 + 12 + 12 + 4 + 84));
  a.class_weights = a.prior = f;
  a.losses = f;
  a.dlogits = nullptr;
  EXPECT_TRUE(is(cost::cross_entropy(a), 50 * 21, 84 + 12 + 12 + 28 + 28 + 4 + 12));
}

TEST(Cost, Elementwise) {
  EXPECT_TRUE(is(cost::cast(Cast{.x = h,
                                 .x_type = DType::bf16,
                                 .ldx = 5,
                                 .y = d,
                                 .y_type = DType::f64,
                                 .ldy = 5,
                                 .rows = 3,
                                 .cols = 5}),
                 0, 15 * 10));
  EXPECT_TRUE(
      is(cost::fill(Fill{.value = 0, .y = f, .type = DType::f32, .ldy = 5, .rows = 3, .cols = 5}),
         0, 60));
  EXPECT_TRUE(is(cost::all_finite(AllFinite{
                     .x = f, .type = DType::f32, .ldx = 5, .finite = labels, .rows = 3, .cols = 5}),
                 15, 64));
  EXPECT_TRUE(
      is(cost::add(Add<bf16>{.x = h, .ldx = 5, .y = h, .ldy = 5, .rows = 3, .cols = 5}), 15, 90));
  EXPECT_TRUE(
      is(cost::scale(Scale<bf16>{.factor = f, .y = h, .ldy = 5, .rows = 3, .cols = 5}), 15, 64));
}

TEST(Cost, Activations) {
  EXPECT_TRUE(
      is(cost::gelu_forward(GeluForward<bf16>{
             .x = h, .ldx = 5, .y = h, .ldy = 5, .rows = 3, .cols = 5, .kind = GeluKind::erf}),
         675, 60));
  EXPECT_TRUE(
      is(cost::gelu_forward(GeluForward<float>{
             .x = f, .ldx = 5, .y = f, .ldy = 5, .rows = 3, .cols = 5, .kind = GeluKind::tanh}),
         450, 120));
  EXPECT_TRUE(is(cost::gelu_backward(GeluBackward<bf16>{.dy = h,
                                                        .lddy = 5,
                                                        .x = h,
                                                        .ldx = 5,
                                                        .dx = h,
                                                        .lddx = 5,
                                                        .rows = 3,
                                                        .cols = 5,
                                                        .kind = GeluKind::erf}),
                 750, 90));
  EXPECT_TRUE(is(cost::gelu_backward(GeluBackward<bf16>{.dy = h,
                                                        .lddy = 5,
                                                        .x = h,
                                                        .ldx = 5,
                                                        .dx = h,
                                                        .lddx = 5,
                                                        .rows = 3,
                                                        .cols = 5,
                                                        .kind = GeluKind::quick}),
                 600, 90));
  EXPECT_TRUE(is(cost::swiglu_forward(SwigluForward<bf16>{
                     .x = h, .ldx = 10, .y = h, .ldy = 5, .rows = 3, .cols = 5}),
                 450, 90));
  EXPECT_TRUE(
      is(cost::swiglu_backward(SwigluBackward<bf16>{
             .dy = h, .lddy = 5, .x = h, .ldx = 10, .dx = h, .lddx = 10, .rows = 3, .cols = 5}),
         600, 150));
  EXPECT_TRUE(is(cost::softmax_forward(SoftmaxForward<float>{
                     .x = f, .ldx = 5, .y = f, .ldy = 5, .rows = 3, .cols = 5}),
                 675, 120));
  EXPECT_TRUE(
      is(cost::softmax_backward(SoftmaxBackward<float>{
             .dy = f, .lddy = 5, .y = f, .ldy = 5, .dx = f, .lddx = 5, .rows = 3, .cols = 5}),
         60, 180));
}

TEST(Cost, LayerNorm) {
  const LayerNormForward<bf16> forward{.x = f,
                                       .ldx = 5,
                                       .gamma = f,
                                       .beta = f,
                                       .y = h,
                                       .ldy = 5,
                                       .mean = f,
                                       .rstd = f,
                                       .rows = 3,
                                       .cols = 5,
                                       .eps = 1e-6};
  EXPECT_TRUE(is(cost::layer_norm_forward(forward), 120, 15 * 6 + 4 * (5 + 5 + 3 + 3)));
  LayerNormBackward<bf16> backward{.dy = h,
                                   .lddy = 5,
                                   .x = f,
                                   .ldx = 5,
                                   .gamma = f,
                                   .mean = f,
                                   .rstd = f,
                                   .residual = f,
                                   .ldr = 5,
                                   .dx = f,
                                   .lddx = 5,
                                   .rows = 3,
                                   .cols = 5};
  EXPECT_TRUE(is(cost::layer_norm_backward(backward), 195, 15 * 14 + 4 * (5 + 3 + 3)));
  backward.residual = nullptr;
  EXPECT_TRUE(is(cost::layer_norm_backward(backward), 195, 15 * 10 + 4 * (5 + 3 + 3)));
  LayerNormBackwardAffine<bf16> affine{.dy = h,
                                       .lddy = 5,
                                       .x = f,
                                       .ldx = 5,
                                       .mean = f,
                                       .rstd = f,
                                       .dgamma = f,
                                       .dbeta = f,
                                       .accumulate = false,
                                       .rows = 3,
                                       .cols = 5};
  EXPECT_TRUE(is(cost::layer_norm_backward_affine(affine), 75, 15 * 6 + 4 * (3 + 3 + 5 + 5)));
  affine.accumulate = true;
  EXPECT_TRUE(is(cost::layer_norm_backward_affine(affine), 75, 15 * 6 + 4 * (3 + 3 + 10 + 10)));
}

TEST(Cost, Lora) {  // 3 rows, 5 columns, rank 2
  EXPECT_TRUE(
      is(cost::lora_down(LoraDown<bf16>{
             .x = h, .ldx = 5, .a = f, .lda = 5, .u = h, .ldu = 2, .rows = 3, .in = 5, .rank = 2}),
         60, 30 + 40 + 12));
  EXPECT_TRUE(is(cost::lora_up(LoraUp<bf16>{.u = h,
                                            .ldu = 2,
                                            .b = f,
                                            .ldb = 2,
                                            .scale = f,
                                            .y = h,
                                            .ldy = 5,
                                            .rows = 3,
                                            .out = 5,
                                            .rank = 2}),
                 60, 12 + 40 + 8 + 60));
  EXPECT_TRUE(is(cost::lora_up_backward(LoraUpBackward<bf16>{.dy = h,
                                                             .lddy = 5,
                                                             .u = h,
                                                             .ldu = 2,
                                                             .b = f,
                                                             .ldb = 2,
                                                             .scale = f,
                                                             .du = h,
                                                             .lddu = 2,
                                                             .db = f,
                                                             .lddb = 2,
                                                             .rows = 3,
                                                             .out = 5,
                                                             .rank = 2}),
                 120, 30 + 12 + 40 + 8 + 12 + 40));
  LoraDownBackward<bf16> backward{.du = h,
                                  .lddu = 2,
                                  .x = h,
                                  .ldx = 5,
                                  .a = f,
                                  .lda = 5,
                                  .da = f,
                                  .ldda = 5,
                                  .dx = h,
                                  .lddx = 5,
                                  .rows = 3,
                                  .in = 5,
                                  .rank = 2};
  EXPECT_TRUE(is(cost::lora_down_backward(backward), 120, 12 + 30 + 40 + 40 + 60));
  backward.accumulate = true;
  backward.dx = nullptr;
  EXPECT_TRUE(is(cost::lora_down_backward(backward), 60, 12 + 30 + 80));
  EXPECT_TRUE(is(cost::lora_merge(LoraMerge<bf16>{.w = f,
                                                  .ldw = 7,
                                                  .a = f,
                                                  .lda = 7,
                                                  .b = f,
                                                  .ldb = 2,
                                                  .scale = f,
                                                  .merged = h,
                                                  .ldm = 7,
                                                  .out = 5,
                                                  .in = 7,
                                                  .rank = 2}),
                 140, 140 + 56 + 40 + 8 + 70));
  EXPECT_TRUE(is(cost::lora_scale(LoraScale<bf16>{
                     .b = f, .ldb = 2, .scale = f, .v = h, .ldv = 2, .out = 5, .rank = 2}),
                 10, 40 + 8 + 20));
}

TEST(Cost, Matmul) {  // [2, 5] [5, 3]
  const MatmulShape s{.m = 2, .n = 3, .k = 5};
  const auto product = [&]<class T, class C>(const T* a, C* c, const float* bias, bool accumulate) {
    return Matmul<T, C>{.a = a, .b = a, .c = c, .bias = bias, .accumulate = accumulate, .shape = s};
  };
  EXPECT_TRUE(is(cost::matmul(product(h, h, f, false)), 60, 20 + 30 + 12 + 12));
  EXPECT_TRUE(is(cost::matmul(product(h, f, nullptr, true)), 60, 20 + 30 + 48));
  EXPECT_TRUE(is(cost::packed_matmul(product(h, f, f, false)), 60, 20 + 30 + 12 + 24));
  EXPECT_TRUE(
      is(cost::matmul_by_adapter(Matmul<bf16, bf16, float>{.a = h, .b = f, .c = h, .shape = s}), 60,
         20 + 60 + 12));
  EXPECT_TRUE(is(cost::matmul_gelu(MatmulGelu<bf16>{.a = h,
                                                    .b = h,
                                                    .tail = {},
                                                    .bias = f,
                                                    .h = h,
                                                    .ldh = 3,
                                                    .y = h,
                                                    .kind = GeluKind::erf,
                                                    .shape = s}),
                 60 + 45 * 6, 20 + 30 + 12 + 12 + 12));
  EXPECT_TRUE(is(cost::matmul_gelu_backward(MatmulGeluBackward<bf16>{.a = h,
                                                                     .b = h,
                                                                     .tail = {},
                                                                     .h = h,
                                                                     .ldh = 3,
                                                                     .dx = h,
                                                                     .kind = GeluKind::erf,
                                                                     .shape = s}),
                 60 + 50 * 6, 20 + 30 + 12 + 12));
  MatmulResidual<bf16> residual{
      .a = h, .b = h, .tail = {}, .bias = f, .gamma = f, .x = f, .ldx = 3, .y = f, .shape = s};
  EXPECT_TRUE(is(cost::matmul_residual(residual), 60 + 12, 20 + 30 + 12 + 12 + 24 + 24));
  // A tail of rank 4: 16 flops a column, U [2, 4] and V [4, 3]; or 4 and 2 ranks of it for 1 and 2
  // columns.
  MatmulExtended<bf16> extended{
      .a = h, .b = h, .tail = {h, 4, h, 3, 4}, .c = h, .bias = f, .shape = s};
  EXPECT_TRUE(is(cost::matmul_extended(extended), 60 + 48, 74 + 16 + 24));
  extended.tail.parts = {MatmulTailPart{0, 1, 0, 4}, MatmulTailPart{1, 3, 2, 4}};
  EXPECT_TRUE(is(cost::matmul_extended(extended), 60 + 32, 74 + 16 + 16));
  residual.tail = extended.tail;
  EXPECT_TRUE(is(cost::matmul_residual(residual), 72 + 32, 122 + 32));
}

TEST(Cost, MatmulFp8) {  // [2, 5] [3, 5]^T
  e4m3* const q = reinterpret_cast<e4m3*>(h);
  const MatmulShape s{.m = 2, .n = 3, .k = 5, .op_b = Op::transpose};
  EXPECT_TRUE(is(cost::quantize_rows(QuantizeRows<bf16>{
                     .x = h, .ldx = 5, .q = q, .ldq = 16, .scales = f, .rows = 2, .cols = 5}),
                 30, 20 + 10 + 8));
  EXPECT_TRUE(is(cost::matmul_fp8(MatmulFp8<bf16>{
                     .a = q, .scales_a = f, .b = q, .scales_b = f, .c = h, .bias = f, .shape = s}),
                 60, 10 + 8 + 15 + 12 + 12 + 12));
  EXPECT_TRUE(
      is(cost::matmul_fp8(MatmulFp8<float>{
             .a = q, .scales_a = f, .b = q, .scales_b = f, .c = f, .bias = nullptr, .shape = s}),
         60, 10 + 8 + 15 + 12 + 24));
}

TEST(Cost, ListsOfTensors) {
  const OptimizedTensor<float> tensors[] = {{f, f, f, f, 3}, {f, f, f, f, 4}};
  EXPECT_TRUE(is(cost::adamw(AdamW<float>{.tensors = tensors, .count = 2, .chunks = 2, .step = {}}),
                 14 * 7, 28 * 7));
  EXPECT_TRUE(
      is(cost::adamw(AdamW<float>{
             .tensors = tensors, .count = 2, .chunks = 2, .step = {.zero_gradients = true}}),
         14 * 7, 32 * 7));
  EXPECT_TRUE(is(cost::sgd(Sgd<float>{.tensors = tensors, .count = 2, .chunks = 2, .step = {}}),
                 6 * 7, 20 * 7));
  EXPECT_TRUE(
      is(cost::sgd(Sgd<float>{
             .tensors = tensors, .count = 1, .chunks = 1, .step = {.zero_gradients = true}}),
         6 * 3, 24 * 3));
  const GradientSpan<float> spans[] = {{f, 3}, {f, 4}};
  EXPECT_TRUE(is(cost::grad_norm(GradNorm<float>{.gradients = spans,
                                                 .count = 2,
                                                 .chunks = 2,
                                                 .scale = d,
                                                 .max_norm = 1,
                                                 .norm = d,
                                                 .factor = d}),
                 14, 28 + 24));
}

// 2 layers [in 5, out 7] of ranks 2 and 1, all gradients wanted.
TEST(Cost, Orthogonality) {
  OrthogonalityLayer<float> l{.in = 5,
                              .out = 7,
                              .rank_g = 2,
                              .rank_p = 1,
                              .a_g = f,
                              .b_g = f,
                              .a_p = f,
                              .b_p = f,
                              .da_g = f,
                              .db_g = f,
                              .da_p = f,
                              .db_p = f};
  l.w0 = l.v_k = f;
  l.k = 4;
  const OrthogonalityLayer<float> layers[] = {l, l};
  const double grams = 2 * 2 * 9 * 12, adapters = 2 * 3 * 4 * 3 * 12, scalars = 8 + 16;
  const OrthogonalityPenalty<float> both{.layers = layers, .count = 2, .weight = d, .values = d};
  EXPECT_TRUE(is(cost::orthogonality_update(both), grams, adapters + scalars));
  EXPECT_TRUE(is(cost::orthogonality_base(both), grams + 2 * 2 * 3 * 3 * 35,
                 adapters + scalars + 2 * 4 * 35));
  EXPECT_TRUE(is(cost::orthogonality_base_subspace(both), grams + 2 * 2 * 2 * 3 * 4 * 5,
                 adapters + scalars + 2 * 4 * 20));
  EXPECT_TRUE(is(cost::orthogonality_subspace(both), 2 * 2 * 9 * 5, 2 * 3 * 4 * 3 * 5 + scalars));
  EXPECT_TRUE(
      is(cost::orthogonality_subspace_l1(both), 2 * 2 * 9 * 5, 2 * 3 * 4 * 3 * 5 + scalars));
  EXPECT_TRUE(
      is(cost::delta_norm2(DeltaNorm2<float>{layers, 2, d}), 2 * 2 * 5 * 12, 2 * 4 * 3 * 12 + 32));
  l.da_g = l.db_g = nullptr;
  EXPECT_TRUE(is(cost::orthogonality_update(OrthogonalityPenalty<float>{
                     .layers = &l, .count = 1, .weight = d, .values = d}),
                 grams / 2, 4 * 3 * 12 + 2 * 4 * 12 + 16));
  // 3 tokens; u and b read, du and db added to
  const OrthogonalityFeatures<bf16> features{.u_g = h,
                                             .ld_g = 3,
                                             .u_p = h,
                                             .ld_p = 3,
                                             .b_g = f,
                                             .b_p = f,
                                             .rows = 3,
                                             .out = 7,
                                             .rank_g = 2,
                                             .rank_p = 1,
                                             .form = PenaltyForm::cosine2,
                                             .weight = d,
                                             .du_g = f,
                                             .ldd_g = 3,
                                             .du_p = f,
                                             .ldd_p = 3,
                                             .db_g = f,
                                             .db_p = f,
                                             .value = d};
  EXPECT_TRUE(is(cost::orthogonality_features(features), 2 * 2 * 9 * 3,
                 2 * 9 + 4 * 21 + 8 * 9 + 8 * 21 + 16));
}

TEST(Cost, Tokens) {  // 2 images, 1 class token and 4 patches of 3 numbers
  EXPECT_TRUE(is(cost::patch_embed_forward(PatchEmbedForward<bf16>{.z = h,
                                                                   .ldz = 3,
                                                                   .own = f,
                                                                   .pos = f,
                                                                   .x = f,
                                                                   .ldx = 3,
                                                                   .batch = 2,
                                                                   .prefix = 1,
                                                                   .patches = 4,
                                                                   .dim = 3}),
                 30, 2 * 24 + 4 * (3 + 15 + 30)));
  EXPECT_TRUE(is(
      cost::patch_embed_backward(PatchEmbedBackward<bf16>{
          .dx = f, .lddx = 3, .dz = h, .lddz = 3, .batch = 2, .prefix = 1, .patches = 4, .dim = 3}),
      0, 4 * 30 + 2 * 24));
  EXPECT_TRUE(is(cost::patch_embed_backward(PatchEmbedBackward<bf16>{.dx = f,
                                                                     .lddx = 3,
                                                                     .dz = h,
                                                                     .lddz = 3,
                                                                     .down = f,
                                                                     .dpos = f,
                                                                     .accumulate = true,
                                                                     .batch = 2,
                                                                     .prefix = 1,
                                                                     .patches = 4,
                                                                     .dim = 3}),
                 30, 4 * 30 + 2 * 24 + 8 * (3 + 15)));
  const RopeShape s{.batch = 2, .tokens = 5, .prefix = 1, .heads = 3, .head_dim = 6};
  EXPECT_TRUE(is(cost::rope_forward(Rope<bf16>{.x = h, .cos = f, .sin = f, .shape = s}), 3 * 144,
                 4 * 144 + 2 * 4 * 12));
  EXPECT_TRUE(is(cost::rope_backward(Rope<bf16>{.x = h, .cos = f, .sin = f, .shape = s}), 3 * 144,
                 4 * 144 + 2 * 4 * 12));
  EXPECT_TRUE(
      is(cost::image_to_patches(ImageToPatches<bf16>{.images = nullptr,
                                                     .mean = f,
                                                     .std = f,
                                                     .patches = h,
                                                     .ld = 0,
                                                     .shape = {.batch = 2, .size = 4, .patch = 2}}),
         40 * 32, 9 * 32));
}

TEST(Cost, ResidualAndSums) {
  EXPECT_TRUE(is(
      cost::residual_forward(ResidualForward<bf16>{
          .x = f, .ldx = 5, .z = h, .ldz = 5, .gamma = f, .y = f, .ldy = 5, .rows = 3, .cols = 5}),
      30, 150 + 20));
  EXPECT_TRUE(is(cost::residual_forward(ResidualForward<bf16>{
                     .x = f, .ldx = 5, .z = h, .ldz = 5, .y = f, .ldy = 5, .rows = 3, .cols = 5}),
                 30, 150));
  EXPECT_TRUE(is(cost::residual_backward(ResidualBackward<bf16>{
                     .dy = f, .lddy = 5, .gamma = f, .dz = h, .lddz = 5, .rows = 3, .cols = 5}),
                 15, 90 + 20));
  EXPECT_TRUE(is(cost::residual_backward_gamma(ResidualBackwardGamma<bf16>{
                     .dy = f, .lddy = 5, .z = h, .ldz = 5, .dgamma = f, .rows = 3, .cols = 5}),
                 30, 90 + 20));
  EXPECT_TRUE(is(cost::bias_backward(BiasBackward<bf16>{
                     .dy = h, .lddy = 5, .db = f, .accumulate = true, .rows = 3, .cols = 5}),
                 15, 30 + 40));
  EXPECT_TRUE(is(cost::reduction_sum(ReductionSum<bf16>{.x = h, .n = 9, .out = f}), 9, 18 + 4));
}

TEST(Cost, TokenMean) {  // 2 images of 5 tokens, of which 4 count, 3 columns
  const TokenMeanShape s{2, 5, 1, 3};
  EXPECT_TRUE(is(cost::token_mean_forward(
                     TokenMeanForward<float>{.x = f, .ldx = 3, .y = f, .ldy = 3, .shape = s}),
                 24, 4 * (24 + 6)));
  EXPECT_TRUE(is(cost::token_mean_backward(
                     TokenMeanBackward<float>{.dy = f, .lddy = 3, .dx = f, .lddx = 3, .shape = s}),
                 6, 4 * (6 + 30)));
}

}  // namespace
}  // namespace orthofed::test
