//! Attention over packed sequences, forward and backward: `kernels/attention_forward.cu`, `attention_backward.cu`.

use candle_core::{D, DType, Result, Tensor};

use super::Argument::{Float, Int, Null};
use super::{Element, Program, check_offsets, flat, int, offsets, tile_bytes, tiles};
use crate::ops::attention::{Mask, Segments};

/// Widths of a head that the kernels are compiled for.
pub const WIDTHS: [usize; 3] = [64, 80, 128];

/// Bytes of shared memory that a block may have with compute capability 8.0; 9.0 has more.
pub const ROOM: usize = 163 * 1024;
/// The same with 8.6, 8.9 and 12.0.
pub const LITTLE_ROOM: usize = 99 * 1024;

/// Shapes of queries (L, H, D), keys and values (Lk, Hkv, D).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Type of all three.
    pub element: Element,
    /// L
    pub rows: usize,
    /// Lk
    pub keys: usize,
    /// H
    pub heads: usize,
    /// Hkv
    pub kv_heads: usize,
    /// D
    pub width: usize,
    /// Bytes of shared memory that a block may have, [`ROOM`] by default.
    pub room: usize,
}

impl Shape {
    /// For a device that gives a block so many bytes of shared memory.
    pub fn within(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// From the dimensions of queries, keys and values.
    ///
    /// # Errors
    /// Shapes that do not fit each other, a width or a dtype without kernels, no row, more rows than can be counted.
    pub fn new(op: &str, [q, k, v]: [&[usize]; 3], dtype: DType) -> Result<Self> {
        let (&[rows, heads, width], &[keys, kv_heads, k_width]) = (q, k) else {
            candle_core::bail!("{op}: expected q (L, H, D), k and v (Lk, Hkv, D), got {q:?}, {k:?}, {v:?}")
        };
        if k_width != width || v != k {
            candle_core::bail!("{op}: q {q:?}, k {k:?} and v {v:?} differ in their widths or keys")
        }
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            candle_core::bail!(
                "{op}: {heads} query heads are no multiple of {kv_heads} key heads (q {q:?}, k {k:?})"
            )
        }
        if !WIDTHS.contains(&width) {
            candle_core::bail!("{op}: head width {width} of q {q:?} has no kernel; there are {WIDTHS:?}")
        }
        if rows == 0 {
            candle_core::bail!("{op}: q {q:?} has no row")
        }
        let element = Element::of(op, dtype)?;
        int(op, "query rows", rows * heads)?;
        int(op, "key rows", keys * kv_heads)?;
        Ok(Self { element, rows, keys, heads, kv_heads, width, room: ROOM })
    }

    fn kernel(&self, name: &str) -> String {
        format!("{name}_{}_{}", self.element.name(), self.width)
    }

    fn half(&self) -> bool {
        self.element != Element::F32
    }
}

/// Which rows belong together, and which keys a query sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Packing {
    /// First query of each segment, and the end of the last.
    pub cu_q: Vec<i32>,
    /// The same for keys.
    pub cu_k: Vec<i32>,
    /// The segment whose keys come before a segment's own, or -1; empty where there is none.
    pub prefixes: Vec<i32>,
    /// Causal: query `i` sees the keys up to `i + keys - queries`, those of the prefix included.
    pub mask: Mask,
    /// Factor of the scores, above 0.
    pub scale: f32,
}

impl Packing {
    /// Of sequences that attend to themselves and to what they continue.
    ///
    /// # Errors
    /// More rows than can be counted.
    pub fn of(segments: &Segments, mask: Mask, scale: f32) -> Result<Self> {
        let cu = offsets("attention", segments.lengths())?;
        let prefixes = match segments.prefixes() {
            none if none.iter().all(Option::is_none) => vec![],
            some => some.iter().map(|p| p.map_or(-1, |p| p as i32)).collect(),
        };
        Ok(Self { cu_q: cu.clone(), cu_k: cu, prefixes, mask, scale })
    }

    /// That the kernels may trust it.
    ///
    /// # Errors
    /// No segment, offsets that decrease or do not end with the tensors, other numbers of segments for queries and
    /// keys, a prefix that does not come before its segment or has one itself, a scale that is not above 0.
    pub fn check(&self, op: &str, shape: &Shape) -> Result<()> {
        check_offsets(op, "query offsets", &self.cu_q, shape.rows)?;
        check_offsets(op, "key offsets", &self.cu_k, shape.keys)?;
        let segments = self.cu_q.len() - 1;
        if self.cu_k.len() != self.cu_q.len() {
            candle_core::bail!(
                "{op}: {segments} segments of queries, but {} of keys ({shape:?})",
                self.cu_k.len() - 1
            )
        }
        if !self.prefixes.is_empty() && self.prefixes.len() != segments {
            candle_core::bail!("{op}: {} prefixes for {segments} segments", self.prefixes.len())
        }
        for (i, &prefix) in self.prefixes.iter().enumerate() {
            // The gradients of keys look for readers behind a prefix only.
            let fine =
                prefix == -1 || (0..i as i32).contains(&prefix) && self.prefixes[prefix as usize] == -1;
            if !fine {
                candle_core::bail!(
                    "{op}: segment {i} of {segments} continues segment {prefix}, expected an earlier one without a prefix, or -1"
                )
            }
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            candle_core::bail!("{op}: scale {} is not above 0", self.scale)
        }
        Ok(())
    }

    fn causal(&self) -> super::Argument {
        Int(i32::from(self.mask == Mask::Causal))
    }

    fn lists(&self, program: &mut Program, tiles: Vec<(i32, i32)>) -> [super::Argument; 4] {
        let prefixes = if self.prefixes.is_empty() { Null } else { program.ints(self.prefixes.clone()) };
        let (cu_q, cu_k) = (program.ints(self.cu_q.clone()), program.ints(self.cu_k.clone()));
        [cu_q, cu_k, prefixes, program.ints(flat(tiles))]
    }

    /// Tiles of queries, those that see the most keys first, so that a causal launch ends evenly.
    fn query_tiles(&self, rows: i32) -> Vec<(i32, i32)> {
        let mut tiles = tiles(&self.cu_q, rows);
        if self.mask == Mask::Causal {
            tiles.sort_by_key(|&(_, tile)| std::cmp::Reverse(tile));
        }
        tiles
    }
}

/// Zeros behind the last axis up to the next width with kernels. They change neither scores nor gradients.
///
/// # Errors
/// A width above all of them.
pub fn padded(xs: &Tensor) -> Result<Tensor> {
    let width = xs.dim(D::Minus1)?;
    match WIDTHS.iter().find(|&&w| w >= width) {
        Some(&w) if w == width => xs.contiguous(),
        Some(&w) => xs.pad_with_zeros(D::Minus1, 0, w - width)?.contiguous(),
        None => candle_core::bail!(
            "attention: head width {width} of {:?} has no kernel; there are {WIDTHS:?}, and smaller ones are padded",
            xs.dims()
        ),
    }
}

/// Inputs `q, k, v`; outputs `out` (L, H, D) and the log-sum-exp (H, L) in f32.
///
/// # Errors
/// As [`Packing::check`].
pub fn forward(packing: &Packing, shape: &Shape) -> Result<Program> {
    let op = "attention";
    packing.check(op, shape)?;
    let longest = packing.cu_q.windows(2).map(|b| b[1] - b[0]).max().unwrap_or(0);
    // Two parts of 16 rows for each of four warps and two stages, or one of each; f32 has half the keys in a tile.
    let shared = |rows: usize, stages: usize, keys: usize| {
        tile_bytes(shape.element, shape.width, rows + 2 * stages * keys)
    };
    let (rows, stages, keys) = match (shape.half(), longest > 64 && shared(128, 2, 64) <= shape.room) {
        (true, true) => (128, 2, 64),
        (true, false) => (64, 1, 64),
        (false, _) => (64, 1, 32),
    };
    let mut program = Program::new(op);
    let [q, k, v] = program.inputs();
    let out = program.output(shape.element.dtype(), &[shape.rows, shape.heads, shape.width]);
    let lse = program.output(DType::F32, &[shape.heads, shape.rows]);
    let tiles = packing.query_tiles(rows);
    let blocks = tiles.len() * shape.heads;
    let [cu_q, cu_k, prefixes, tiles] = packing.lists(&mut program, tiles);
    let [heads, kv_heads, all] = sizes(shape);
    let arguments = vec![
        q,
        k,
        v,
        out,
        lse,
        cu_q,
        cu_k,
        prefixes,
        tiles,
        heads,
        kv_heads,
        all,
        packing.causal(),
        Float(packing.scale),
    ];
    let kernel = format!("{}_{rows}", shape.kernel("attention_forward"));
    program.launch(kernel, blocks, (128, shared(rows as usize, stages, keys)), arguments)?;
    Ok(program)
}

fn sizes(shape: &Shape) -> [super::Argument; 3] {
    [shape.heads, shape.kv_heads, shape.rows].map(|x| Int(x as i32))
}

/// Inputs `q, k, v, out, grad, lse`; outputs `dq`, `dk`, `dv`.
///
/// # Errors
/// As [`Packing::check`].
pub fn backward(packing: &Packing, shape: &Shape) -> Result<Program> {
    let op = "attention backward";
    packing.check(op, shape)?;
    let mut program = Program::new(op);
    let [q, k, v, out, grad, lse] = program.inputs();
    let (dtype, numbers) = (shape.element.dtype(), shape.rows * shape.heads);
    let dq = program.output(dtype, &[shape.rows, shape.heads, shape.width]);
    let [dk, dv] = [0; 2].map(|_| program.output(dtype, &[shape.keys, shape.kv_heads, shape.width]));
    let delta = program.add(super::Buffer::Scratch(numbers));
    let [heads, kv_heads, rows] = sizes(shape);
    let name = format!("attention_delta_{}", shape.element.name());
    let arguments = vec![out, grad, delta, heads, rows, Int(shape.width as i32)];
    program.launch(name, numbers.div_ceil(8), (256, 0), arguments)?;

    let shared = |moving: usize| tile_bytes(shape.element, shape.width, 128 + 4 * moving) + 16 * moving;
    let most_keys = if shape.half() { 64 } else { 16 };
    let wide = shape.half() && shape.width == 128;
    let moving_queries = if wide { 32 } else { most_keys };
    let (moving_keys, few) = match wide && shared(most_keys) > shape.room {
        true => (32, "_32"),
        false => (most_keys, ""),
    };
    let (causal, scale) = (packing.causal(), Float(packing.scale));
    let q_tiles = packing.query_tiles(64);
    let blocks = q_tiles.len() * shape.heads;
    let [cu_q, cu_k, prefixes, q_tiles] = packing.lists(&mut program, q_tiles);
    let arguments = vec![
        q, k, v, grad, lse, delta, dq, cu_q, cu_k, prefixes, q_tiles, heads, kv_heads, rows, causal, scale,
    ];
    let kernel = shape.kernel("attention_backward_q") + few;
    program.launch(kernel, blocks, (128, shared(moving_keys)), arguments)?;

    let k_tiles = tiles(&packing.cu_k, 64);
    let blocks = k_tiles.len() * shape.kv_heads;
    let (k_tiles, segments) = (program.ints(flat(k_tiles)), Int(packing.cu_q.len() as i32 - 1));
    let arguments = vec![
        q, k, v, grad, lse, delta, dk, dv, cu_q, cu_k, prefixes, k_tiles, heads, kv_heads, rows, segments,
        causal, scale,
    ];
    program.launch(
        shape.kernel("attention_backward_kv"),
        blocks,
        (128, shared(moving_queries)),
        arguments,
    )?;
    Ok(program)
}
