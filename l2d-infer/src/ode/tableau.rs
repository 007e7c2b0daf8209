//! Explicit Runge-Kutta methods as data. A tableau is checked while the crate compiles: a wrong coefficient lowers the
//! order it satisfies, and the build fails.

/// An explicit Runge-Kutta method in Butcher's notation: `k_i = f(t + c_i h, x + h sum_j a_ij k_j)`,
/// `x' = x + h sum_i b_i k_i`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tableau {
    /// Nodes `c`, one a stage, the first 0.
    pub nodes: &'static [f64],
    /// Row `i` holds the `i` coefficients `a_i0 .. a_i(i-1)` of stage `i`; the first row is empty.
    pub coefficients: &'static [&'static [f64]],
    /// Weights `b`, one a stage.
    pub weights: &'static [f64],
}

/// Coefficients are quotients of small integers, so conditions hold to a few rounding errors.
const TOLERANCE: f64 = 1e-14;

const fn near(left: f64, right: f64) -> bool {
    (left - right).abs() < TOLERANCE
}

impl Tableau {
    /// Evaluations a step costs.
    pub const fn stages(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the lengths fit each other, the method is explicit, and every row sums to its node (which makes the method
    /// treat `t` like one more component of the state).
    pub const fn is_consistent(&self) -> bool {
        let stages = self.stages();
        if stages == 0 || self.coefficients.len() != stages || self.weights.len() != stages || self.nodes[0] != 0.0 {
            return false;
        }
        let mut i = 0;
        while i < stages {
            if self.coefficients[i].len() != i {
                return false;
            }
            let (mut sum, mut j) = (0.0, 0);
            while j < i {
                sum += self.coefficients[i][j];
                j += 1;
            }
            if !near(sum, self.nodes[i]) {
                return false;
            }
            i += 1;
        }
        true
    }

    /// `sum_i b_i c_i^power`.
    const fn quadrature(&self, power: usize) -> f64 {
        let (mut sum, mut i) = (0.0, 0);
        while i < self.stages() {
            let (mut term, mut p) = (self.weights[i], 0);
            while p < power {
                term *= self.nodes[i];
                p += 1;
            }
            sum += term;
            i += 1;
        }
        sum
    }

    /// `sum_j a_ij c_j^power`.
    const fn row(&self, i: usize, power: usize) -> f64 {
        let (mut sum, mut j) = (0.0, 0);
        while j < i {
            let (mut term, mut p) = (self.coefficients[i][j], 0);
            while p < power {
                term *= self.nodes[j];
                p += 1;
            }
            sum += term;
            j += 1;
        }
        sum
    }

    /// `sum_i b_i c_i^outer sum_j a_ij c_j^inner`.
    const fn nested(&self, outer: usize, inner: usize) -> f64 {
        let (mut sum, mut i) = (0.0, 0);
        while i < self.stages() {
            let (mut term, mut p) = (self.weights[i] * self.row(i, inner), 0);
            while p < outer {
                term *= self.nodes[i];
                p += 1;
            }
            sum += term;
            i += 1;
        }
        sum
    }

    /// `sum_i b_i sum_j a_ij sum_k a_jk c_k`.
    const fn tall(&self) -> f64 {
        let (mut sum, mut i) = (0.0, 0);
        while i < self.stages() {
            let mut j = 0;
            while j < i {
                sum += self.weights[i] * self.coefficients[i][j] * self.row(j, 1);
                j += 1;
            }
            i += 1;
        }
        sum
    }

    /// The order of convergence its coefficients satisfy, counted up to 4 (Hairer, Norsett, Wanner, "Solving Ordinary
    /// Differential Equations I", table II.2.1: one condition for each rooted tree); 0 for an inconsistent tableau.
    pub const fn order(&self) -> usize {
        if !self.is_consistent() || !near(self.quadrature(0), 1.0) {
            return 0;
        }
        if !near(self.quadrature(1), 1.0 / 2.0) {
            return 1;
        }
        if !near(self.quadrature(2), 1.0 / 3.0) || !near(self.nested(0, 1), 1.0 / 6.0) {
            return 2;
        }
        if !near(self.quadrature(3), 1.0 / 4.0)
            || !near(self.nested(1, 1), 1.0 / 8.0)
            || !near(self.nested(0, 2), 1.0 / 12.0)
            || !near(self.tall(), 1.0 / 24.0)
        {
            return 3;
        }
        4
    }
}

/// Euler's method.
pub static EULER: Tableau = Tableau { nodes: &[0.0], coefficients: &[&[]], weights: &[1.0] };

/// The explicit midpoint rule.
pub static MIDPOINT: Tableau = Tableau { nodes: &[0.0, 0.5], coefficients: &[&[], &[0.5]], weights: &[0.0, 1.0] };

/// Heun's second-order method (the explicit trapezoidal rule).
pub static HEUN2: Tableau = Tableau { nodes: &[0.0, 1.0], coefficients: &[&[], &[1.0]], weights: &[0.5, 0.5] };

/// Heun's third-order method.
pub static HEUN3: Tableau = Tableau {
    nodes: &[0.0, 1.0 / 3.0, 2.0 / 3.0],
    coefficients: &[&[], &[1.0 / 3.0], &[0.0, 2.0 / 3.0]],
    weights: &[1.0 / 4.0, 0.0, 3.0 / 4.0],
};

/// Kutta's 3/8 rule, which torchdiffeq calls `rk4`.
pub static RK4_THREE_EIGHTHS: Tableau = Tableau {
    nodes: &[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0],
    coefficients: &[&[], &[1.0 / 3.0], &[-1.0 / 3.0, 1.0], &[1.0, -1.0, 1.0]],
    weights: &[1.0 / 8.0, 3.0 / 8.0, 3.0 / 8.0, 1.0 / 8.0],
};

/// The classic fourth-order method.
pub static RK4_CLASSIC: Tableau = Tableau {
    nodes: &[0.0, 0.5, 0.5, 1.0],
    coefficients: &[&[], &[0.5], &[0.0, 0.5], &[0.0, 0.0, 1.0]],
    weights: &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0],
};

const _: () = {
    assert!(EULER.order() == 1);
    assert!(MIDPOINT.order() == 2);
    assert!(HEUN2.order() == 2);
    assert!(HEUN3.order() == 3);
    assert!(RK4_THREE_EIGHTHS.order() == 4);
    assert!(RK4_CLASSIC.order() == 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_coefficient_lowers_the_order() {
        let transposed =
            Tableau { coefficients: &[&[], &[1.0 / 3.0], &[1.0, -1.0 / 3.0], &[1.0, -1.0, 1.0]], ..RK4_THREE_EIGHTHS };
        assert!(transposed.is_consistent());
        assert_eq!(transposed.order(), 2);
        let torn = Tableau { coefficients: &[&[], &[0.25]], ..MIDPOINT };
        assert_eq!(torn.order(), 0);
        let biased = Tableau { weights: &[0.5, 0.25], ..HEUN2 };
        assert_eq!(biased.order(), 0);
        let skewed = Tableau { weights: &[0.25, 0.75], ..MIDPOINT };
        assert_eq!(skewed.order(), 1);
    }
}
