//! Products of large matrices, by the crate `gemm`, which burn's CPU backend uses as well.

use gemm::Parallelism;

use super::super::threads::Shared;

/// A read-only matrix in memory that may be a part of a wider one, or lie on its side.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// All of `data: [rows, columns]`.
    ///
    /// # Panics
    /// Unless `data` is whole rows of `columns` numbers.
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        let rows = data.len().checked_div(columns).unwrap_or(0);
        assert_eq!(data.len(), rows * columns, "whole rows of {columns} numbers");
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Columns `first .. first + count` of all rows.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.columns, "columns {first} to {} of {}", first + count, self.columns);
        let data = if self.rows == 0 { self.data } else { &self.data[first * self.column_stride..] };
        Self { data, columns: count, ..self }
    }

    /// Rows `first .. first + count`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows {first} to {} of {}", first + count, self.rows);
        let data = if count == 0 { &[][..] } else { &self.data[first * self.row_stride..] };
        Self { data, rows: count, ..self }
    }

    /// Number of rows.
    pub(super) fn height(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.columns
    }

    /// Distance of rows, and of columns.
    pub(super) fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// What it is a view of, from its first number on.
    pub(super) fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Transposed.
    pub fn t(self) -> Self {
        let Self { data, rows, columns, row_stride, column_stride } = self;
        Self { data, rows: columns, columns: rows, row_stride: column_stride, column_stride: row_stride }
    }
}

/// `out = factor * a b`, or `out += factor * a b` where `accumulate`, for `out: [a.rows, b.columns]`, on all threads.
///
/// # Panics
/// If the sizes do not fit.
pub fn multiply(out: &mut [f32], a: View<'_>, b: View<'_>, factor: f32, accumulate: bool) {
    assert_eq!(out.len(), a.rows * b.columns, "[{}, {}] times [{}, {}]", a.rows, a.columns, b.rows, b.columns);
    let stride = b.columns;
    // Below a few hundred thousand operations a second thread costs more than it does.
    let large = a.rows * a.columns * b.columns > 1 << 18;
    let parallelism = if large { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: exactly `out`, which is borrowed here alone.
    unsafe { multiply_into(Shared::new(out), stride, a, b, factor, accumulate, parallelism) };
}

/// [`multiply`] into rows `stride` apart.
///
/// # Safety
/// The rows of `out` must be there, and nobody else may use them meanwhile.
pub(super) unsafe fn multiply_into(
    out: Shared<f32>,
    stride: usize,
    a: View<'_>,
    b: View<'_>,
    factor: f32,
    accumulate: bool,
    parallelism: Parallelism,
) {
    assert_eq!(a.columns, b.rows, "[{}, {}] times [{}, {}]", a.rows, a.columns, b.rows, b.columns);
    if a.rows == 0 || b.columns == 0 {
        return;
    }
    let reach = |view: &View<'_>| (view.rows - 1) * view.row_stride + (view.columns - 1) * view.column_stride + 1;
    assert!(a.columns == 0 || (reach(&a) <= a.data.len() && reach(&b) <= b.data.len()), "views lie within their data");
    // SAFETY: the inputs are within their slices, just checked; the output is the caller's promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.get(),
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if accumulate { 1.0 } else { 0.0 },
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;

    #[test]
    fn products_of_parts_and_transposes_are_the_definition() {
        let (m, k, n) = (7, 5, 9);
        let (a, b) = (numbers(m * (k + 3), 1), numbers(n * k, 2));
        let left = View::new(&a, k + 3).columns(2, k).rows(1, m - 2);
        let right = View::new(&b, k).t();
        let mut out = vec![1.0; (m - 2) * n];
        multiply(&mut out, left, right, 2.0, true);
        for row in 0..m - 2 {
            for column in 0..n {
                let sum: f32 = (0..k).map(|i| a[(row + 1) * (k + 3) + 2 + i] * b[column * k + i]).sum();
                assert!((out[row * n + column] - 1.0 - 2.0 * sum).abs() < 1e-5);
            }
        }
        multiply(&mut out, left, right, 1.0, false);
        let sum: f32 = (0..k).map(|i| a[(k + 3) + 2 + i] * b[i]).sum();
        assert!((out[0] - sum).abs() < 1e-5, "what was there is not read");
    }
}
