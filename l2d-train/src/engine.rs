//! The two ways an objective is computed, which give the same numbers but for rounding: by automatic differentiation on any
//! backend, and by hand on the CPU.

use burn::tensor::backend::{AutodiffBackend, Backend};
use l2d_core::cpu::dense::Products;
use l2d_core::lm::Lm;

use crate::objective::{HostL2d, HostLm, L2dObjective, LmObjective, Recompute};

/// What both ways are told; it changes memory, time and rounding alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineSettings {
    /// Rows of logits held at a time.
    pub head_chunk: usize,
    /// What is computed again on the way back instead of being kept.
    pub recompute: Recompute,
    /// The factors of large products, by hand.
    pub products: Products,
}

impl Default for EngineSettings {
    /// 1024 rows of logits, everything kept, all in f32.
    fn default() -> Self {
        Self { head_chunk: 1024, recompute: Recompute::None, products: Products::F32 }
    }
}

/// How the L2D objective is computed.
#[derive(Debug)]
pub enum L2dEngine<AB: AutodiffBackend> {
    /// By automatic differentiation on any backend.
    Autodiff(Box<L2dObjective<AB>>),
    /// By hand, on the CPU.
    Host(Box<HostL2d<AB::InnerBackend>>),
}

impl<AB: AutodiffBackend> L2dEngine<AB> {
    /// By hand beside a packed LM, by automatic differentiation beside another.
    pub fn new(lm: Lm<AB::InnerBackend>, settings: EngineSettings) -> Self {
        let EngineSettings { head_chunk, recompute, products } = settings;
        if lm.is_packed() {
            let mut objective = HostL2d::new(lm, products);
            (objective.head_chunk, objective.recompute) = (head_chunk, recompute);
            return Self::Host(Box::new(objective));
        }
        let mut objective = L2dObjective::new(lm);
        (objective.head_chunk, objective.recompute) = (head_chunk, recompute);
        Self::Autodiff(Box::new(objective))
    }

    /// The frozen LM.
    pub fn lm(&self) -> &Lm<AB::InnerBackend> {
        match self {
            Self::Autodiff(objective) => objective.lm(),
            Self::Host(objective) => objective.lm(),
        }
    }
}

/// How next-token cross-entropy is computed.
#[derive(Debug)]
pub enum LmEngine {
    /// By automatic differentiation on any backend.
    Autodiff(LmObjective),
    /// By hand, on the CPU.
    Host(Box<HostLm>),
}

impl LmEngine {
    /// By hand where asked, for the given model: a dense one, all of which is trained, or a packed one with corrections.
    pub fn new<B: Backend>(lm: &Lm<B>, by_hand: bool, settings: EngineSettings) -> Self {
        let EngineSettings { head_chunk, recompute, products } = settings;
        if !by_hand {
            return Self::Autodiff(LmObjective { head_chunk, recompute });
        }
        let mut objective = HostLm::new(lm, products);
        (objective.head_chunk, objective.recompute) = (head_chunk, recompute);
        Self::Host(Box::new(objective))
    }
}
