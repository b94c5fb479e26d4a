#include "models/vit/families.h"

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

// timm's names are ours.
constexpr NameRule kTimmBlocks[] = {
    {"cls_token", "cls_token"},
    {"pos_embed", "pos_embed"},
    {"patch_embed.proj.*", "patch_embed.proj.*"},
    {"blocks.{}.norm1.*", "blocks.{}.norm1.*"},
    {"blocks.{}.attn.qkv.*", "blocks.{}.attn.qkv.*"},
    {"blocks.{}.attn.proj.*", "blocks.{}.attn.proj.*"},
    {"blocks.{}.ls1.gamma", "blocks.{}.ls1.gamma"},
    {"blocks.{}.norm2.*", "blocks.{}.norm2.*"},
    {"blocks.{}.mlp.fc1.*", "blocks.{}.mlp.fc1.*"},
    {"blocks.{}.mlp.fc2.*", "blocks.{}.mlp.fc2.*"},
    {"blocks.{}.ls2.gamma", "blocks.{}.ls2.gamma"},
    {"norm.*", "norm.*"},
};
constexpr NameRule kTimmExtras[] = {
    {"dist_token", "dist_token"},
    {"reg_token", "reg_token"},
    {"norm_pre.*", "norm_pre.*"},
    {"blocks.{}.attn.q_norm.*", "blocks.{}.attn.q_norm.*"},
    {"blocks.{}.attn.k_norm.*", "blocks.{}.attn.k_norm.*"},
    {"blocks.{}.mlp.fc1_g.*", "blocks.{}.mlp.fc1.*", 0},
    {"blocks.{}.mlp.fc1_x.*", "blocks.{}.mlp.fc1.*", 1},
    {"fc_norm.*", "fc_norm.*"},
    {"attn_pool.latent", "attn_pool.latent"},
    {"attn_pool.q.*", "attn_pool.qkv.*", 0},
    {"attn_pool.kv.*", "attn_pool.qkv.*", 1},
    {"attn_pool.proj.*", "attn_pool.proj.*"},
    {"attn_pool.norm.*", "attn_pool.norm.*"},
    {"attn_pool.mlp.fc1.*", "attn_pool.mlp.fc1.*"},
    {"attn_pool.mlp.fc2.*", "attn_pool.mlp.fc2.*"},
    {"head.*", "head.*"},
    {"head_dist.*", "head_dist.*"},
};
// timm's Eva class, which has DINOv3: no bias of k, LayerScale by other names.
constexpr NameRule kTimmEva[] = {
    {"reg_token", "reg_token"},
    {"blocks.{}.attn.q_bias", "blocks.{}.attn.qkv.bias", 0},
    {"blocks.{}.attn.v_bias", "blocks.{}.attn.qkv.bias", 2},
    {"blocks.{}.gamma_1", "blocks.{}.ls1.gamma"},
    {"blocks.{}.gamma_2", "blocks.{}.ls2.gamma"},
    {"blocks.{}.mlp.fc1_g.*", "blocks.{}.mlp.fc1.*", 0},
    {"blocks.{}.mlp.fc1_x.*", "blocks.{}.mlp.fc1.*", 1},
    {"fc_norm.*", "fc_norm.*"},
    {"head.*", "head.*"},
};
constexpr NameRule kDinov2Extras[] = {
    {"register_tokens", "reg_token"},
    {"blocks.{}.mlp.w12.*", "blocks.{}.mlp.fc1.*"},
    {"blocks.{}.mlp.w3.*", "blocks.{}.mlp.fc2.*"},
};
constexpr NameRule kOpenClip[] = {
    {"class_embedding", "cls_token"},
    {"positional_embedding", "pos_embed"},
    {"conv1.weight", "patch_embed.proj.weight"},
    {"ln_pre.*", "norm_pre.*"},
    {"transformer.resblocks.{}.ln_1.*", "blocks.{}.norm1.*"},
    {"transformer.resblocks.{}.attn.in_proj_weight", "blocks.{}.attn.qkv.weight"},
    {"transformer.resblocks.{}.attn.in_proj_bias", "blocks.{}.attn.qkv.bias"},
    {"transformer.resblocks.{}.attn.out_proj.*", "blocks.{}.attn.proj.*"},
    {"transformer.resblocks.{}.ls_1.gamma", "blocks.{}.ls1.gamma"},
    {"transformer.resblocks.{}.ln_2.*", "blocks.{}.norm2.*"},
    {"transformer.resblocks.{}.mlp.c_fc.*", "blocks.{}.mlp.fc1.*"},
    {"transformer.resblocks.{}.mlp.c_proj.*", "blocks.{}.mlp.fc2.*"},
    {"transformer.resblocks.{}.ls_2.gamma", "blocks.{}.ls2.gamma"},
    {"ln_post.*", "norm.*"},
    {"proj", "projection.transposed"},  // [width, embedding]
};
constexpr NameRule kOpenClipHead[] = {{"/visual.head.proj.weight", "projection.weight"}};

// Hugging Face: what vit and dinov2 have in common.
constexpr NameRule kHfEncoder[] = {
    {"embeddings.cls_token", "cls_token"},
    {"embeddings.position_embeddings", "pos_embed"},
    {"embeddings.patch_embeddings.projection.*", "patch_embed.proj.*"},
    {"encoder.layer.{}.attention.attention.query.*", "blocks.{}.attn.qkv.*", 0},
    {"encoder.layer.{}.attention.attention.key.*", "blocks.{}.attn.qkv.*", 1},
    {"encoder.layer.{}.attention.attention.value.*", "blocks.{}.attn.qkv.*", 2},
    {"encoder.layer.{}.attention.output.dense.*", "blocks.{}.attn.proj.*"},
    {"layernorm.*", "norm.*"},
    {"/classifier.*", "head.*"},
};
constexpr NameRule kHfVit[] = {
    {"embeddings.distillation_token", "dist_token"},
    {"encoder.layer.{}.layernorm_before.*", "blocks.{}.norm1.*"},
    {"encoder.layer.{}.layernorm_after.*", "blocks.{}.norm2.*"},
    {"encoder.layer.{}.intermediate.dense.*", "blocks.{}.mlp.fc1.*"},
    {"encoder.layer.{}.output.dense.*", "blocks.{}.mlp.fc2.*"},
    {"/cls_classifier.*", "head.*"},
    {"/distillation_classifier.*", "head_dist.*"},
};
constexpr NameRule kHfDinov2[] = {
    {"embeddings.register_tokens", "reg_token"},
    {"encoder.layer.{}.norm1.*", "blocks.{}.norm1.*"},
    {"encoder.layer.{}.layer_scale1.lambda1", "blocks.{}.ls1.gamma"},
    {"encoder.layer.{}.norm2.*", "blocks.{}.norm2.*"},
    {"encoder.layer.{}.mlp.fc1.*", "blocks.{}.mlp.fc1.*"},
    {"encoder.layer.{}.mlp.fc2.*", "blocks.{}.mlp.fc2.*"},
    {"encoder.layer.{}.mlp.weights_in.*", "blocks.{}.mlp.fc1.*"},
    {"encoder.layer.{}.mlp.weights_out.*", "blocks.{}.mlp.fc2.*"},
    {"encoder.layer.{}.layer_scale2.lambda1", "blocks.{}.ls2.gamma"},
};
constexpr NameRule kHfDinov3[] = {
    {"embeddings.cls_token", "cls_token"},
    {"embeddings.register_tokens", "reg_token"},
    {"embeddings.patch_embeddings.*", "patch_embed.proj.*"},
    {"layer.{}.norm1.*", "blocks.{}.norm1.*"},
    {"layer.{}.attention.q_proj.*", "blocks.{}.attn.qkv.*", 0},
    {"layer.{}.attention.k_proj.*", "blocks.{}.attn.qkv.*", 1},
    {"layer.{}.attention.v_proj.*", "blocks.{}.attn.qkv.*", 2},
    {"layer.{}.attention.o_proj.*", "blocks.{}.attn.proj.*"},
    {"layer.{}.layer_scale1.lambda1", "blocks.{}.ls1.gamma"},
    {"layer.{}.norm2.*", "blocks.{}.norm2.*"},
    {"layer.{}.mlp.gate_proj.*", "blocks.{}.mlp.fc1.*", 0},
    {"layer.{}.mlp.up_proj.*", "blocks.{}.mlp.fc1.*", 1},
    {"layer.{}.mlp.down_proj.*", "blocks.{}.mlp.fc2.*"},
    {"layer.{}.layer_scale2.lambda1", "blocks.{}.ls2.gamma"},
    {"norm.*", "norm.*"},
};
// What clip and siglip have in common.
constexpr NameRule kHfClipEncoder[] = {
    {"embeddings.patch_embedding.*", "patch_embed.proj.*"},
    {"embeddings.position_embedding.weight", "pos_embed"},
    {"encoder.layers.{}.layer_norm1.*", "blocks.{}.norm1.*"},
    {"encoder.layers.{}.self_attn.q_proj.*", "blocks.{}.attn.qkv.*", 0},
    {"encoder.layers.{}.self_attn.k_proj.*", "blocks.{}.attn.qkv.*", 1},
    {"encoder.layers.{}.self_attn.v_proj.*", "blocks.{}.attn.qkv.*", 2},
    {"encoder.layers.{}.self_attn.out_proj.*", "blocks.{}.attn.proj.*"},
    {"encoder.layers.{}.layer_norm2.*", "blocks.{}.norm2.*"},
    {"encoder.layers.{}.mlp.fc1.*", "blocks.{}.mlp.fc1.*"},
    {"encoder.layers.{}.mlp.fc2.*", "blocks.{}.mlp.fc2.*"},
    {"post_layernorm.*", "norm.*"},
};
constexpr NameRule kHfClip[] = {
    {"embeddings.class_embedding", "cls_token"},
    {"pre_layrnorm.*", "norm_pre.*"},  // sic
    {"/visual_projection.weight", "projection.weight"},
};
constexpr NameRule kHfSiglip[] = {
    {"head.probe", "attn_pool.latent"},
    {"head.attention.in_proj_weight", "attn_pool.qkv.weight"},
    {"head.attention.in_proj_bias", "attn_pool.qkv.bias"},
    {"head.attention.out_proj.*", "attn_pool.proj.*"},
    {"head.layernorm.*", "attn_pool.norm.*"},
    {"head.mlp.fc1.*", "attn_pool.mlp.fc1.*"},
    {"head.mlp.fc2.*", "attn_pool.mlp.fc2.*"},
};

// The live names of transformers 5.23.0, as named_modules() gives them.
constexpr LiveRule kLiveVit[] = {
    {"encoder.layer.{}.attention.attention.query", "layers.{}.attention.q_proj"},
    {"encoder.layer.{}.attention.attention.key", "layers.{}.attention.k_proj"},
    {"encoder.layer.{}.attention.attention.value", "layers.{}.attention.v_proj"},
    {"encoder.layer.{}.attention.output.dense", "layers.{}.attention.o_proj"},
    {"encoder.layer.{}.intermediate.dense", "layers.{}.mlp.fc1"},
    {"encoder.layer.{}.output.dense", "layers.{}.mlp.fc2"},
};
constexpr LiveRule kLiveDinov2[] = {
    {"encoder.layer.{}.attention.attention.query", "encoder.layer.{}.attention.q_proj"},
    {"encoder.layer.{}.attention.attention.key", "encoder.layer.{}.attention.k_proj"},
    {"encoder.layer.{}.attention.attention.value", "encoder.layer.{}.attention.v_proj"},
    {"encoder.layer.{}.attention.output.dense", "encoder.layer.{}.attention.o_proj"},
    {"encoder.layer.{}.mlp.weights_in", "encoder.layer.{}.mlp.gate_proj"},
    {"encoder.layer.{}.mlp.weights_in", "encoder.layer.{}.mlp.up_proj"},
    {"encoder.layer.{}.mlp.weights_out", "encoder.layer.{}.mlp.down_proj"},
};
// Of CLIPVisionModel and SiglipVisionModel, which the two-tower models hold as `vision_model`.
constexpr LiveNames kLiveTower{"vision_model.", "", {}};

constexpr const char* kMask = "of masked pretraining alone";
constexpr const char* kDecoder = "the decoder of masked pretraining";
constexpr const char* kText = "of the text tower";
constexpr const char* kContrast = "of the contrastive loss";
constexpr const char* kPooler = "the feature is the class token itself";
constexpr const char* kIndices = "a constant";

struct Normalisation {
  float mean[3], std[3];
};
constexpr Normalisation kHalf{{0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};
constexpr Normalisation kImageNet{{0.485f, 0.456f, 0.406f}, {0.229f, 0.224f, 0.225f}};
constexpr Normalisation kOpenAi{{0.48145466f, 0.4578275f, 0.40821073f},
                                {0.26862954f, 0.26130258f, 0.27577711f}};

VitConfig defaults(double eps, PositionRule positions, const Normalisation& n,
                   GeluKind gelu = GeluKind::erf) {
  VitConfig c;
  c.heads = 0;
  c.eps = eps;
  c.positions = positions;
  c.gelu = gelu;
  std::copy(n.mean, n.mean + 3, c.mean);
  std::copy(n.std, n.std + 3, c.std);
  return c;
}

}  // namespace

// Sources of the constants: timm's vision_transformer.py, facebookresearch/dinov2, open_clip, and
// the configuration classes and modelling files of transformers (versions: docs/backbones.md).
const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {"dinov2",
       "DINOv2's own names",
       {""},
       {"patch_embed.proj.weight", "mask_token"},
       {kTimmBlocks, kDinov2Extras},
       {{"mask_token", kMask}},
       defaults(1e-6, PositionRule::offset, kImageNet)},
      {"timm",
       "timm ViT",
       {""},
       {"patch_embed.proj.weight"},
       {kTimmBlocks, kTimmExtras},
       {{"mask_token", kMask}, {"decoder_*", kDecoder}},
       defaults(1e-6, PositionRule::antialias, kHalf)},
      {"timm_dinov3",
       "timm DINOv3",
       {""},
       {"patch_embed.proj.weight", "reg_token", "blocks.0.gamma_1"},
       {kTimmBlocks, kTimmEva},
       {},
       defaults(1e-5, PositionRule::rotary, kImageNet)},
      {"open_clip",
       "OpenCLIP visual tower",
       {"visual.", ""},
       {"conv1.weight", "class_embedding"},
       {kOpenClip},
       {{"/transformer.*", kText},
        {"/token_embedding.*", kText},
        {"/positional_embedding", kText},
        {"/text_projection", kText},
        {"/ln_final.*", kText},
        {"/attn_mask", kText},
        {"/text.*", kText},
        {"/logit_scale", kContrast},
        {"/logit_bias", kContrast}},
       defaults(1e-5, PositionRule::antialias, kOpenAi)},
      {"open_clip_timm",
       "OpenCLIP with a timm trunk",
       {"visual.trunk."},
       {"patch_embed.proj.weight"},
       {kTimmBlocks, kTimmExtras, kOpenClipHead},
       {{"/text.*", kText},
        {"/transformer.*", kText},
        {"/token_embedding.*", kText},
        {"/positional_embedding", kText},
        {"/text_projection", kText},
        {"/ln_final.*", kText},
        {"/attn_mask", kText},
        {"/logit_scale", kContrast},
        {"/logit_bias", kContrast}},
       defaults(1e-6, PositionRule::antialias, kOpenAi)},
      {"hf_dinov2_with_registers",
       "Hugging Face dinov2_with_registers",
       {"", "dinov2_with_registers."},
       {"embeddings.patch_embeddings.projection.weight", "embeddings.register_tokens"},
       {kHfEncoder, kHfDinov2},
       {{"embeddings.mask_token", kMask}},
       defaults(1e-6, PositionRule::antialias, kImageNet),
       12,
       {nullptr, nullptr, kLiveDinov2}},
      {"hf_dinov2",
       "Hugging Face dinov2",
       {"", "dinov2."},
       {"embeddings.patch_embeddings.projection.weight", "encoder.layer.0.norm1.weight"},
       {kHfEncoder, kHfDinov2},
       {{"embeddings.mask_token", kMask}},
       defaults(1e-6, PositionRule::plain, kImageNet),
       12,
       {nullptr, nullptr, kLiveDinov2}},
      {"hf_vit",
       "Hugging Face vit",
       {"", "vit.", "deit."},
       {"embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layernorm_before.weight"},
       {kHfEncoder, kHfVit},
       {{"embeddings.mask_token", kMask}, {"pooler.*", kPooler}, {"/decoder.*", kDecoder}},
       defaults(1e-12, PositionRule::plain, kHalf),
       12,
       {nullptr, nullptr, kLiveVit}},
      {"hf_dinov3_vit",
       "Hugging Face dinov3_vit",
       {"", "model."},
       {"embeddings.patch_embeddings.weight", "layer.0.attention.q_proj.weight"},
       {kHfDinov3},
       {{"embeddings.mask_token", kMask}},
       defaults(1e-5, PositionRule::rotary, kImageNet),
       6,
       {"", "model.", {}}},
      {"hf_clip",
       "Hugging Face clip_vision_model",
       {"vision_model.", ""},
       {"embeddings.patch_embedding.weight", "embeddings.class_embedding"},
       {kHfClipEncoder, kHfClip},
       {{"embeddings.position_ids", kIndices},
        {"/text_model.*", kText},
        {"/text_projection.*", kText},
        {"/logit_scale", kContrast}},
       defaults(1e-5, PositionRule::plain, kOpenAi, GeluKind::quick),
       12,
       kLiveTower},
      {"hf_siglip",
       "Hugging Face siglip_vision_model",
       {"vision_model.", ""},
       {"embeddings.patch_embedding.weight", "head.probe"},
       {kHfClipEncoder, kHfSiglip},
       {{"embeddings.position_ids", kIndices},
        {"/text_model.*", kText},
        {"/logit_scale", kContrast},
        {"/logit_bias", kContrast}},
       defaults(1e-6, PositionRule::plain, kHalf, GeluKind::tanh),
       12,
       kLiveTower},
  };
  return all;
}

const Family& family_named(const std::string& naming) {
  for (const Family& family : families())
    if (naming == family.naming) return family;
  throw Error("no family is called " + naming);
}

int64_t released_heads(int64_t dim) {
  constexpr std::pair<int64_t, int64_t> kHeads[] = {{192, 3},   {384, 6},   {512, 8},   {768, 12},
                                                    {1024, 16}, {1152, 16}, {1280, 16}, {1408, 16},
                                                    {1536, 24}, {1664, 16}};
  for (const auto& [width, heads] : kHeads)
    if (width == dim) return heads;
  return 0;
}

}  // namespace orthofed
