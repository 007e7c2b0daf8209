//! What the authors call the parameters of a diffusion path.

/// The reference's name of one of our parameters (`blocks.0.query.a`), and whether it stores the transpose: its linear
/// layers are `[out, in]`, its low-rank factors `A` and `B` lie as ours.
///
/// # Panics
/// When there is no parameter of that name in a diffusion path.
pub fn reference_name(name: &str) -> (String, bool) {
    if name == "classes" {
        return ("model.data_label_embedder.weight".into(), false);
    }
    let (module, leaf) = name.rsplit_once('.').expect("a parameter's name has a dot");
    let two_layers = |prefix: &str| {
        let index = if module.ends_with("inner") { 0 } else { 2 };
        format!("{prefix}.{index}")
    };
    let reference = match module.split('.').collect::<Vec<_>>()[..] {
        ["vocabulary", "projection"] => "model.flow_token_embedder.embedder.layers_module.0".to_string(),
        ["timestep", _] => two_layers("model.timestep_embedder.mlp"),
        ["translation", _] => two_layers("model.flow_to_lm_encoder.embedder.layers_module"),
        ["final_weight", _] => two_layers("model.modulation_head.mlp"),
        ["blocks", i, "modulation", _] => two_layers(&format!("model.layers.{i}.modulation_head.mlp")),
        ["blocks", i, "query"] => format!("model.layers.{i}.self_attn.flow_q_proj"),
        ["blocks", i, "output"] => format!("model.layers.{i}.self_attn.flow_o_proj"),
        ["blocks", i, layer @ ("gate" | "up" | "down")] => format!("model.layers.{i}.mlp.flow_{layer}_proj"),
        _ => panic!("`{name}` is no parameter of a diffusion path"),
    };
    let leaf_name = if matches!(leaf, "a" | "b") { leaf.to_uppercase() } else { leaf.to_string() };
    (format!("{reference}.{leaf_name}"), leaf == "weight")
}

/// The reference keeps every layer that has a low-rank correction a second time, inside the correction: the base's tensor
/// `model.layers.0.self_attn.q_proj.weight` as `model.layers.0.self_attn.flow_q_proj.wrapped_layer.weight`. `None` for
/// tensors that have no such double.
pub(super) fn alias(base: &str) -> Option<String> {
    let (module, leaf) = base.rsplit_once('.')?;
    let (parent, layer) = module.rsplit_once('.')?;
    let corrected = matches!(layer, "q_proj" | "o_proj" | "gate_proj" | "up_proj" | "down_proj");
    corrected.then(|| format!("{parent}.flow_{layer}.wrapped_layer.{leaf}"))
}
