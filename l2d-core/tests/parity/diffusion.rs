//! The diffusion path against the golden numbers: every recorded intermediate, the logits, the loss and the gradient of
//! every trainable parameter.

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor, TensorData};
use l2d_core::checkpoint::reference_name;
use l2d_core::corruption::corrupt;
use l2d_core::diffusion::{DiffusionPath, Modulation, merge};
use l2d_core::lm::{AttentionPlan, Context, KvCache, Lm, host_values};
use l2d_core::parameters::{ParameterPath, trainable};
use l2d_testkit::models::{golden_l2d, transposed};
use l2d_testkit::{Golden, GoldenTensor, assert_close};

use super::{AB, B};

const FILES: [&str; 4] = ["l2d_llama_lora", "l2d_qwen2_lora", "l2d_llama_full", "l2d_llama_guidance"];

/// After the blocks; a float64 re-computation differs from these numbers by up to 5e-5.
const DEEP: f64 = 3e-4;
const SHALLOW: f64 = 5e-5;

struct Case {
    name: &'static str,
    golden: Golden,
    lm: Lm<B>,
    path: DiffusionPath<B>,
    tokens: Vec<Vec<u32>>,
    timesteps: Vec<f32>,
    /// One class per position, where there are classes.
    classes: Option<Vec<usize>>,
}

impl Case {
    fn load(name: &'static str) -> Self {
        let golden = Golden::load(name);
        let (lm, path) = golden_l2d(&golden, &Default::default());
        let tokens = golden.token_rows("in/input_ids");
        let timesteps = golden.get("in/timesteps").f32();
        let classes = golden.has("in/class_labels").then(|| {
            let labels = &golden.get("in/class_labels").values;
            labels.iter().flat_map(|&class| vec![class as usize; tokens[0].len()]).collect()
        });
        Self { name, golden, lm, path, tokens, timesteps, classes }
    }

    fn main_pass(&self) -> (KvCache<B>, AttentionPlan<B>, Tensor<B, 2>) {
        let mut cache = self.lm.new_cache(vec![0; self.tokens.len()], self.tokens[0].len());
        let hidden = self.lm.forward(&self.tokens, &mut cache);
        let slots = vec![(0..self.tokens[0].len()).collect(); self.tokens.len()];
        let plan = self.lm.plan_at(&cache, &slots);
        (cache, plan, hidden)
    }

    fn modulation(&self) -> Modulation<B> {
        self.path.modulation(&self.timesteps, self.classes.as_deref())
    }

    fn x_t(&self) -> Tensor<B, 2> {
        self.golden.get("in/x_t").rows(&Default::default())
    }

    fn check<const D: usize>(&self, tensor: Tensor<B, D>, golden: &str, tolerance: f64) {
        assert_close(&format!("{} {golden}", self.name), &host_values(tensor), self.golden.get(golden), tolerance);
    }
}

#[test]
fn parity_vocabulary_and_corruption() {
    for case in FILES.map(Case::load) {
        let table = case.path.vocabulary.table(&case.lm).whole();
        case.check(table.clone(), "out/V", SHALLOW);

        let device = Default::default();
        let labels = case.golden.get("in/labels_aligned");
        let targets: Vec<i32> = labels.values.iter().map(|&y| if y < 0.0 { 0 } else { y as i32 }).collect();
        let x1 = table.select(0, Tensor::<B, 1, Int>::from_data(targets.as_slice(), &device));
        let x0 = case.golden.get("in/noise").rows::<B>(&device) * case.path.config.sigma;
        let t = Tensor::from_data(TensorData::new(case.timesteps.clone(), [case.timesteps.len(), 1]), &device);
        case.check(corrupt(x1, x0, t), "in/x_t", SHALLOW);
    }
}

#[test]
fn parity_conditioning_and_modulation() {
    for case in FILES.map(Case::load) {
        case.check(case.path.timestep.features(&case.timesteps), "mid/timestep_features", 1e-6);
        if case.golden.has("mid/time_embedding_no_class") {
            case.check(case.path.timestep.forward(&case.timesteps), "mid/time_embedding_no_class", SHALLOW);
        }
        case.check(case.path.conditioning(&case.timesteps, case.classes.as_deref()), "mid/conditioning", SHALLOW);
        let modulation = case.modulation();
        for (i, block) in modulation.blocks.iter().enumerate() {
            let parts = [
                ("attn_gain", &block.attention_scale),
                ("attn_shift", &block.attention_shift),
                ("attn_gate", &block.attention_gate),
                ("mlp_gain", &block.mlp_scale),
                ("mlp_shift", &block.mlp_shift),
                ("mlp_gate", &block.mlp_gate),
            ];
            for (part, tensor) in parts {
                let name = format!("mid/block{i}/{part}");
                if case.golden.has(&name) {
                    case.check(tensor.clone(), &name, SHALLOW);
                }
            }
        }
        assert!(case.golden.has("mid/block0/mlp_gate"), "block 0 was compared");
        case.check(modulation.final_weight, "mid/final_weight", SHALLOW);
    }
}

#[test]
fn parity_blocks_and_logits() {
    for case in FILES.map(Case::load) {
        let (cache, plan, hidden) = case.main_pass();
        case.check(case.lm.logits(hidden.clone()), "out/base_logits", SHALLOW);
        case.check(hidden.clone(), "cache/final_hidden", SHALLOW);
        let modulation = case.modulation();
        let scaled = case.x_t() * modulation.input_scale.clone();
        case.check(scaled, "mid/encoder_input_scaled", SHALLOW);
        case.check(case.path.encode(case.x_t(), &modulation), "mid/encoder_output", SHALLOW);

        let block = &case.path.blocks[0];
        let base = &case.lm.blocks[0];
        let flow_in = case.golden.get("mid/block0/flow_attn_in").rows(&Default::default());
        case.check(block.attention(flow_in, base, &plan, cache.layer(0)), "mid/block0/flow_attn_out", SHALLOW);
        let flow_in = case.golden.get("mid/block0/flow_mlp_in").rows(&Default::default());
        case.check(block.mlp(flow_in, base), "mid/block0/flow_mlp_out", SHALLOW);

        let mut compared = 0;
        let z = case.path.forward_with(
            &case.lm,
            |layer| cache.layer(layer),
            &plan,
            &modulation,
            case.x_t(),
            |layer, z| {
                let name = format!("mid/block{layer}/flow");
                case.check(z.clone(), &name, DEEP);
                compared += 1;
            },
        );
        assert_eq!(compared, case.lm.config.num_layers);
        let merged = merge(hidden, z, &modulation);
        case.check(merged.clone(), "mid/final_norm_in", DEEP);
        case.check(case.lm.final_norm.forward(merged.clone()), "mid/final_norm_out", DEEP);
        case.check(case.lm.logits(merged), "out/flow_logits", DEEP);
    }
}

#[test]
fn parity_no_class() {
    let case = Case::load("l2d_llama_guidance");
    let (cache, plan, hidden) = case.main_pass();
    let modulation = case.path.modulation(&case.timesteps, None);
    let z = case.path.forward(&case.lm, &cache, &plan, &modulation, case.x_t());
    case.check(case.lm.logits(merge(hidden, z, &modulation)), "out/flow_logits_null_class", DEEP);
}

#[test]
fn parity_cached_last_position() {
    for case in FILES.map(Case::load) {
        for (tokens, padding, golden) in [
            (case.tokens.clone(), vec![0; case.tokens.len()], "cache/logits_last"),
            (case.golden.token_rows("in/pad_input_ids"), paddings(&case.golden), "cache/pad_logits_last"),
        ] {
            let mut cache = case.lm.new_cache(padding.clone(), 64);
            let hidden = case.lm.forward(&tokens, &mut cache);
            let (batch, length) = (tokens.len(), tokens[0].len());
            let last: Vec<i32> = (0..batch).map(|b| (b * length + length - 1) as i32).collect();
            let hidden = hidden.select(0, Tensor::<B, 1, Int>::from_data(last.as_slice(), &Default::default()));
            let plan = case.lm.plan_at(&cache, &padding.iter().map(|pad| vec![length - 1 - pad]).collect::<Vec<_>>());
            let mut found = Vec::new();
            for &t in &case.golden.get("cache/t_values").values {
                let classes = case.classes.as_ref().map(|all| (0..batch).map(|b| all[b * length]).collect::<Vec<_>>());
                let modulation = case.path.modulation(&vec![t as f32; batch], classes.as_deref());
                let x = case.golden.get("cache/x_last").rows(&Default::default());
                let z = case.path.forward(&case.lm, &cache, &plan, &modulation, x);
                found.extend(host_values(case.lm.logits(merge(hidden.clone(), z, &modulation))));
            }
            assert_close(&format!("{} {golden}", case.name), &found, case.golden.get(golden), DEEP);
        }
    }
}

#[test]
fn parity_padded_flow_logits() {
    for case in FILES.map(Case::load) {
        let tokens = case.golden.token_rows("in/pad_input_ids");
        let padding = paddings(&case.golden);
        let mut cache = case.lm.new_cache(padding.clone(), 1);
        let hidden = case.lm.forward(&tokens, &mut cache);
        let length = tokens[0].len();
        let positions = |pad: &usize| (0..length).map(|slot| slot.saturating_sub(*pad)).collect();
        let plan = case.lm.plan_at(&cache, &padding.iter().map(positions).collect::<Vec<_>>());
        let modulation = case.modulation();
        let z = case.path.forward(&case.lm, &cache, &plan, &modulation, case.x_t());
        let logits = host_values(case.lm.logits(merge(hidden, z, &modulation)));
        let expected = case.golden.get("out/pad_flow_logits");
        let vocab = case.lm.config.vocab_size;
        for (b, &pad) in padding.iter().enumerate() {
            let range = (b * length + pad) * vocab..(b + 1) * length * vocab;
            let row = GoldenTensor { shape: vec![range.len()], values: expected.values[range.clone()].to_vec() };
            assert_close(&format!("{} padded row {b}", case.name), &logits[range], &row, DEEP);
        }
    }
}

#[test]
fn parity_loss_and_gradients() {
    for case in FILES.map(Case::load) {
        let lm: Lm<AB> = AutodiffModule::from_inner(case.lm.clone());
        let lm = lm.no_grad();
        let path: DiffusionPath<AB> = trainable(AutodiffModule::from_inner(case.path.clone()));
        let (cache, _, hidden) = case.main_pass();
        let length = case.tokens[0].len();
        let plan = AttentionPlan::<AB>::dense(
            &lm.config,
            &lm.rope,
            cache.padding(),
            &vec![(0..length).collect(); case.tokens.len()],
            cache.slots(),
            &lm.device(),
            lm.dtype(),
        );
        let device = lm.device();
        let labels: Vec<i32> = case.golden.get("in/labels_aligned").values.iter().map(|&y| y as i32).collect();
        let targets: Vec<i32> = labels.iter().map(|&y| y.max(0)).collect();
        let targets = Tensor::<AB, 1, Int>::from_data(targets.as_slice(), &device);
        let x1 = path.vocabulary.forward(lm.embed(targets.clone()));
        let x0 = case.golden.get("in/noise").rows::<AB>(&device) * path.config.sigma;
        let t = Tensor::from_data(TensorData::new(case.timesteps.clone(), [case.timesteps.len(), 1]), &device);
        let modulation = path.modulation(&case.timesteps, case.classes.as_deref());
        let context = |layer: usize| {
            let (keys, values) = cache.layer_tensors(layer).unwrap();
            Context::Tensors(Tensor::from_inner(keys), Tensor::from_inner(values))
        };
        let z = path.forward_with(&lm, context, &plan, &modulation, corrupt(x1, x0, t), |_, _| {});
        let logits = lm.logits(merge(Tensor::from_inner(hidden), z, &modulation));
        let log_probabilities = log_softmax(logits, 1).gather(1, targets.unsqueeze_dim(1)); // [rows, 1]
        let labelled: Vec<f32> = labels.iter().map(|&y| if y < 0 { 0.0 } else { 1.0 }).collect();
        let count = labelled.iter().sum::<f32>();
        let mask = Tensor::from_data(TensorData::new(labelled.clone(), [labelled.len(), 1]), &device);
        let per_position = log_probabilities * mask * -1.0;
        let found = host_values(per_position.clone().inner());
        assert_close(case.name, &found, case.golden.get("out/loss_per_position"), DEEP);
        let loss = per_position.sum() / count;
        assert_close(case.name, &host_values(loss.clone().inner()), case.golden.get("out/loss"), 1e-5);

        let mut compare =
            CompareGradients { case: &case, names: ParameterPath::default(), grads: loss.backward(), compared: 0 };
        path.visit(&mut compare);
        assert_eq!(compare.compared, case.golden.names("grad/").len(), "{}: every gradient was compared", case.name);
    }
}

struct CompareGradients<'a> {
    case: &'a Case,
    names: ParameterPath,
    grads: <AB as AutodiffBackend>::Gradients,
    compared: usize,
}

impl ModuleVisitor<AB> for CompareGradients<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.names.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.names.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<AB, D>>) {
        let name = self.names.name();
        let (reference, transpose) = reference_name(&name);
        let golden = self.case.golden.get(&format!("grad/{reference}"));
        let grad = param.val().grad(&self.grads).unwrap_or_else(|| panic!("{name} has no gradient"));
        let shape = grad.dims();
        let mut values = host_values(grad);
        if transpose {
            values = transposed(&values, shape[0], shape[1]);
        }
        let largest = golden.values.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // The last bias of the final-weight head cancels in w(t) - w(0): its gradient is zero but for rounding.
        assert_close(&format!("{} grad/{reference}", self.case.name), &values, golden, 1e-3 * largest + 1e-6);
        self.compared += 1;
    }
}

fn paddings(golden: &Golden) -> Vec<usize> {
    let mask = golden.token_rows("in/pad_attention_mask");
    mask.iter().map(|row| row.iter().take_while(|&&m| m == 0).count()).collect()
}
