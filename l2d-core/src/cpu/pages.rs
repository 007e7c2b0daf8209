//! Keys and values of sequences, in pages that sequences share.

use std::sync::Arc;

use super::attention::{self, Parts};
use super::lanes::{LANES, Lanes};
use super::packed::{COLUMNS, Line};
use super::threads::{self, Shared};

/// Positions of a page.
pub(super) const PAGE: usize = COLUMNS;

/// How cached keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheFormat {
    /// 32 bits a number: as they were computed.
    #[default]
    F32,
    /// 16 bits a number, IEEE half precision: half the bytes of a long context, 11 bits of precision, at most 65504.
    F16,
}

impl CacheFormat {
    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// A number of the cache as it is stored.
pub(super) trait Stored: Copy + 'static {
    /// The nearest one.
    fn rounded(value: f32) -> Self;

    /// 16 of them.
    ///
    /// # Safety
    /// As for [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Stored for f32 {
    fn rounded(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's.
        unsafe { L::load(from) }
    }
}

impl Stored for half::f16 {
    fn rounded(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's; f16 is its bits.
        unsafe { L::load_f16(from.cast()) }
    }
}

/// What decides how a page is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageShape {
    /// Blocks of the model.
    pub layers: usize,
    /// Key/value heads.
    pub heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// How they are stored.
    pub format: CacheFormat,
}

impl PageShape {
    /// Numbers a head takes in a page's values: whole vectors.
    pub(super) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Numbers of one head of one layer: its keys `[head_dim, PAGE]`, then its values `[PAGE, padded]`.
    fn head_size(&self) -> usize {
        self.head_dim * PAGE + PAGE * self.padded()
    }

    fn size(&self) -> usize {
        self.layers * self.heads * self.head_size()
    }

    /// Bytes of a page.
    pub fn bytes(&self) -> usize {
        self.size() * self.format.bytes()
    }
}

/// [`PAGE`] positions of one sequence: for each layer and head the keys with positions side by side, so that a query meets
/// 32 of them at once, and the values with their numbers side by side.
#[derive(Clone)]
struct Page(Box<[Line]>);

impl Page {
    fn new(shape: PageShape) -> Self {
        Self(vec![Line([0; 64]); shape.bytes().div_ceil(64)].into_boxed_slice())
    }
}

/// One sequence's keys (rotated) and values in all layers. A clone shares its pages until one of the two writes.
#[derive(Clone)]
pub struct PagedSequence {
    shape: PageShape,
    pages: Vec<Arc<Page>>,
    len: usize,
}

impl std::fmt::Debug for PagedSequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PagedSequence({} positions in {} pages)", self.len, self.pages.len())
    }
}

impl PagedSequence {
    /// An empty sequence.
    pub fn new(shape: PageShape) -> Self {
        Self { shape, pages: Vec::new(), len: 0 }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// Makes room for `new` positions, in pages of this sequence alone. To be called before they are written.
    pub fn reserve(&mut self, new: usize) {
        let end = self.len + new;
        while self.pages.len() * PAGE < end {
            self.pages.push(Arc::new(Page::new(self.shape)));
        }
        if new > 0 {
            for page in &mut self.pages[self.len / PAGE..] {
                Arc::make_mut(page);
            }
        }
    }

    /// Writes keys and values `[new, heads * head_dim]` of one layer at the positions from `len` on, for which
    /// [`PagedSequence::reserve`] has made room; [`PagedSequence::advance`] makes them count.
    pub fn write(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        match self.shape.format {
            CacheFormat::F32 => self.write_as::<f32>(layer, keys, values),
            CacheFormat::F16 => self.write_as::<half::f16>(layer, keys, values),
        }
    }

    fn write_as<N: Stored>(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (shape, width) = (self.shape, self.shape.heads * self.shape.head_dim);
        for (i, (keys, values)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let position = self.len + i;
            let slot = position % PAGE;
            let page = Arc::get_mut(&mut self.pages[position / PAGE]).expect("reserved for this sequence alone");
            let numbers = numbers_mut::<N>(&mut page.0);
            let heads = keys.chunks_exact(shape.head_dim).zip(values.chunks_exact(shape.head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let at = (layer * shape.heads + head) * shape.head_size();
                for (i, &number) in key.iter().enumerate() {
                    numbers[at + i * PAGE + slot] = N::rounded(number);
                }
                let at = at + shape.head_dim * PAGE + slot * shape.padded();
                for (to, &number) in numbers[at..at + shape.head_dim].iter_mut().zip(value) {
                    *to = N::rounded(number);
                }
            }
        }
    }

    /// Ends a step of `new` positions.
    pub fn advance(&mut self, new: usize) {
        self.len += new;
    }

    /// The keys `[head_dim, PAGE]` and values `[PAGE, padded]` of one page, layer and head, in the sequence's format.
    pub(super) fn head<N: Stored>(&self, page: usize, layer: usize, head: usize) -> (*const N, *const N) {
        debug_assert_eq!(size_of::<N>(), self.shape.format.bytes());
        let at = (layer * self.shape.heads + head) * self.shape.head_size();
        let numbers = numbers::<N>(&self.pages[page].0);
        let keys = &numbers[at..at + self.shape.head_size()];
        let (keys, values) = keys.split_at(self.shape.head_dim * PAGE);
        (keys.as_ptr(), values.as_ptr())
    }

    pub(super) fn shape(&self) -> PageShape {
        self.shape
    }
}

fn numbers<N: Stored>(lines: &[Line]) -> &[N] {
    // SAFETY: a line is 64 bytes, aligned for any `N`; any bits are a number.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), std::mem::size_of_val(lines) / size_of::<N>()) }
}

fn numbers_mut<N: Stored>(lines: &mut [Line]) -> &mut [N] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), std::mem::size_of_val(lines) / size_of::<N>()) }
}

/// Where a row sits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its sequence's place in the batch.
    pub sequence: usize,
    /// Its position; it sees the positions up to this one.
    pub position: usize,
}

/// `softmax(Q K^T / sqrt(head_dim)) V` of one layer: `queries: [rows, query_heads * head_dim]`, same shape out. Rows of one
/// sequence that follow one another share what is read of it. A row's result is the same bits whatever the others are.
pub fn attend(sequences: &[PagedSequence], layer: usize, places: &[Place], queries: &[f32]) -> Vec<f32> {
    let Some(shape) = sequences.first().map(PagedSequence::shape) else { return Vec::new() };
    let width = queries.len() / places.len().max(1);
    assert!(sequences.iter().all(|sequence| sequence.shape() == shape), "sequences of one model");
    assert!(queries.len() == places.len() * width && width.is_multiple_of(shape.heads * shape.head_dim), "whole rows");
    let mut mixed = vec![0f32; queries.len()];
    if mixed.is_empty() {
        return mixed;
    }
    // Runs of rows of one sequence.
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    for (row, place) in places.iter().enumerate() {
        let pages = sequences[place.sequence].pages.len();
        assert!(place.position < pages * PAGE, "position {} was never computed", place.position);
        match runs.last_mut() {
            Some(run) if places[run.start].sequence == place.sequence && run.len() < attention::RUN => {
                run.end = row + 1;
            }
            _ => runs.push(row..row + 1),
        }
    }
    let chunks = places.iter().map(|place| attention::chunks(place.position)).max().unwrap_or(1);
    let out = Shared::new(&mut mixed);
    if chunks == 1 {
        threads::run(runs.len() * shape.heads, |piece| {
            let rows = runs[piece / shape.heads].clone();
            attention::attend_run(sequences, layer, piece % shape.heads, places, rows, queries, width, out, None);
        });
        return mixed;
    }
    let vectors = queries.len() / shape.head_dim;
    let mut numbers = vec![0f32; Parts::len(vectors, chunks, shape.padded())];
    let parts = Parts::new(Shared::new(&mut numbers), chunks, shape.padded());
    threads::run(runs.len() * shape.heads * chunks, |piece| {
        let (run, head, chunk) = (piece / (shape.heads * chunks), piece / chunks % shape.heads, piece % chunks);
        let rows = runs[run].clone();
        attention::attend_run(sequences, layer, head, places, rows, queries, width, out, Some((parts, chunk)));
    });
    let heads = width / shape.head_dim;
    threads::run(places.len(), |row| {
        for vector in row * heads..(row + 1) * heads {
            // SAFETY: every vector has its own part of the result.
            let mixed =
                unsafe { std::slice::from_raw_parts_mut(out.get().add(vector * shape.head_dim), shape.head_dim) };
            attention::merge(parts, vector, places[row].position, mixed);
        }
    });
    mixed
}
