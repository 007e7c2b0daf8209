//! Ordinary differential equations `dx/dt = f(t, x)`. Nothing here knows a model: a slope is any closure.

pub mod adaptive;
pub mod fixed;
pub mod tableau;

pub use adaptive::{Adaptive, AdaptiveParams, AdaptiveSolver, End, Failure, IntegrationError, Solution};
pub use fixed::{FixedGrid, GridError, Solver};
pub use tableau::{EmbeddedTableau, Tableau};
