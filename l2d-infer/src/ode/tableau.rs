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

    /// The order of convergence its coefficients satisfy, counted up to 5 (Hairer, Norsett, Wanner, "Solving Ordinary
    /// Differential Equations I", table II.2.1: one condition for each rooted tree); 0 for an inconsistent tableau.
    pub const fn order(&self) -> usize {
        if self.is_consistent() { self.order_of(self.weights) } else { 0 }
    }

    /// The order that other weights give the same stages.
    const fn order_of(&self, weights: &[f64]) -> usize {
        let b = Stages::of(weights);
        let (one, c) = (Stages([1.0; MAX_STAGES]), Stages::of(self.nodes));
        let (c2, ac) = (c.times(c), self.apply(c));
        let (c3, ac2) = (c2.times(c), self.apply(c2));
        let aac = self.apply(ac);
        if !near(b.dot(one), 1.0) {
            return 0;
        }
        if !near(b.dot(c), 1.0 / 2.0) {
            return 1;
        }
        if !near(b.dot(c2), 1.0 / 3.0) || !near(b.dot(ac), 1.0 / 6.0) {
            return 2;
        }
        if !near(b.dot(c3), 1.0 / 4.0)
            || !near(b.dot(c.times(ac)), 1.0 / 8.0)
            || !near(b.dot(ac2), 1.0 / 12.0)
            || !near(b.dot(aac), 1.0 / 24.0)
        {
            return 3;
        }
        if !near(b.dot(c3.times(c)), 1.0 / 5.0)
            || !near(b.dot(c2.times(ac)), 1.0 / 10.0)
            || !near(b.dot(c.times(ac2)), 1.0 / 15.0)
            || !near(b.dot(c.times(aac)), 1.0 / 30.0)
            || !near(b.dot(ac.times(ac)), 1.0 / 20.0)
            || !near(b.dot(self.apply(c3)), 1.0 / 20.0)
            || !near(b.dot(self.apply(c.times(ac))), 1.0 / 40.0)
            || !near(b.dot(self.apply(ac2)), 1.0 / 60.0)
            || !near(b.dot(self.apply(aac)), 1.0 / 120.0)
        {
            return 4;
        }
        5
    }

    /// `A x`.
    const fn apply(&self, x: Stages) -> Stages {
        let mut out = Stages([0.0; MAX_STAGES]);
        let mut i = 0;
        while i < self.stages() {
            let mut j = 0;
            while j < i {
                out.0[i] += self.coefficients[i][j] * x.0[j];
                j += 1;
            }
            i += 1;
        }
        out
    }
}

/// The most stages a tableau here has.
const MAX_STAGES: usize = 8;

/// One number for each stage, zero beyond the last.
#[derive(Clone, Copy)]
struct Stages([f64; MAX_STAGES]);

impl Stages {
    const fn of(values: &[f64]) -> Self {
        let (mut out, mut i) = ([0.0; MAX_STAGES], 0);
        while i < values.len() {
            out[i] = values[i];
            i += 1;
        }
        Self(out)
    }

    const fn times(self, other: Self) -> Self {
        let (mut out, mut i) = (self, 0);
        while i < MAX_STAGES {
            out.0[i] *= other.0[i];
            i += 1;
        }
        out
    }

    const fn dot(self, other: Self) -> f64 {
        let (mut sum, mut i) = (0.0, 0);
        while i < MAX_STAGES {
            sum += self.0[i] * other.0[i];
            i += 1;
        }
        sum
    }
}

/// A tableau with a second solution of lower order, whose difference to the first estimates the error of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmbeddedTableau {
    /// Stages and the solution that is kept.
    pub tableau: Tableau,
    /// Weights of the difference between the two solutions, one a stage.
    pub error: &'static [f64],
    /// Weights of an estimate of the state in the middle of a step, one a stage; for dense output.
    pub midpoint: &'static [f64],
}

impl EmbeddedTableau {
    /// Order of the solution that is kept.
    pub const fn order(&self) -> usize {
        self.tableau.order()
    }

    /// Order of the other solution.
    pub const fn embedded_order(&self) -> usize {
        let (mut other, mut i) = (Stages::of(self.tableau.weights), 0);
        while i < self.error.len() {
            other.0[i] -= self.error[i];
            i += 1;
        }
        self.tableau.order_of(&other.0)
    }
}

/// Fehlberg's method of order 2 with an embedded one of order 1, as torchdiffeq has it.
pub static FEHLBERG2: EmbeddedTableau = EmbeddedTableau {
    tableau: Tableau {
        nodes: &[0.0, 0.5, 1.0],
        coefficients: &[&[], &[0.5], &[1.0 / 256.0, 255.0 / 256.0]],
        weights: &[1.0 / 512.0, 255.0 / 256.0, 1.0 / 512.0],
    },
    error: &[-1.0 / 512.0, 0.0, 1.0 / 512.0],
    midpoint: &[0.0, 0.5, 0.0],
};

/// Heun's second-order method with Euler's step beside it.
pub static ADAPTIVE_HEUN: EmbeddedTableau =
    EmbeddedTableau { tableau: HEUN2, error: &[0.5, -0.5], midpoint: &[0.5, 0.0] };

/// The method of Bogacki and Shampine, order 3 with an embedded one of order 2.
pub static BOGACKI_SHAMPINE3: EmbeddedTableau = EmbeddedTableau {
    tableau: Tableau {
        nodes: &[0.0, 0.5, 0.75, 1.0],
        coefficients: &[&[], &[0.5], &[0.0, 0.75], &[2.0 / 9.0, 1.0 / 3.0, 4.0 / 9.0]],
        weights: &[2.0 / 9.0, 1.0 / 3.0, 4.0 / 9.0, 0.0],
    },
    error: &[2.0 / 9.0 - 7.0 / 24.0, 1.0 / 3.0 - 1.0 / 4.0, 4.0 / 9.0 - 1.0 / 3.0, -1.0 / 8.0],
    midpoint: &[0.0, 0.5, 0.0, 0.0],
};

/// The weights of Dormand and Prince's solution of order 5, which its last stage uses as well.
const DORMAND_PRINCE_WEIGHTS: [f64; 6] =
    [35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0];

/// The method of Dormand and Prince, order 5 with an embedded one of order 4. The embedded weights are torchdiffeq's (those
/// of Shampine's revision), not the ones of the 1980 paper.
pub static DORMAND_PRINCE5: EmbeddedTableau = EmbeddedTableau {
    tableau: Tableau {
        nodes: &[0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0, 1.0],
        coefficients: &[
            &[],
            &[1.0 / 5.0],
            &[3.0 / 40.0, 9.0 / 40.0],
            &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
            &[19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0],
            &[9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0],
            &DORMAND_PRINCE_WEIGHTS,
        ],
        weights: &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0, 0.0],
    },
    error: &[
        35.0 / 384.0 - 1951.0 / 21600.0,
        0.0,
        500.0 / 1113.0 - 22642.0 / 50085.0,
        125.0 / 192.0 - 451.0 / 720.0,
        -2187.0 / 6784.0 + 12231.0 / 42400.0,
        11.0 / 84.0 - 649.0 / 6300.0,
        -1.0 / 60.0,
    ],
    midpoint: &[
        6025192743.0 / 30085553152.0 / 2.0,
        0.0,
        51252292925.0 / 65400821598.0 / 2.0,
        -2691868925.0 / 45128329728.0 / 2.0,
        187940372067.0 / 1594534317056.0 / 2.0,
        -1776094331.0 / 19743644256.0 / 2.0,
        11237099.0 / 235043384.0 / 2.0,
    ],
};

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
    assert!(FEHLBERG2.order() == 2 && FEHLBERG2.embedded_order() == 1);
    assert!(ADAPTIVE_HEUN.order() == 2 && ADAPTIVE_HEUN.embedded_order() == 1);
    assert!(BOGACKI_SHAMPINE3.order() == 3 && BOGACKI_SHAMPINE3.embedded_order() == 2);
    assert!(DORMAND_PRINCE5.order() == 5 && DORMAND_PRINCE5.embedded_order() == 4);
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
