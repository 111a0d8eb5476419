//! Cosine similarity of many (video, question) pairs in one launch, and its gradients: `kernels/similarity.cu`,
//! `similarity_backward.cu`.

use candle_core::{DType, Result};

use super::Argument::{Float, Int};
use super::attention::LITTLE_ROOM;
use super::{Argument, Buffer, Element, Program, check_offsets, flat, int, tiles};

/// Frames of a block.
const FRAMES: i32 = 128;
/// Queries that a frame meets at once.
const QUERIES: usize = 16;

/// Shapes and segments of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// Type of queries and frames.
    pub element: Element,
    /// D
    pub width: usize,
    /// First query of each segment, and the end of the last.
    pub query_offsets: Vec<i32>,
    /// The same for frames.
    pub frame_offsets: Vec<i32>,
    /// Factor of the cosines.
    pub scale: f32,
}

impl Pairs {
    /// That the kernels may trust it, for `queries` and `frames` rows.
    ///
    /// # Errors
    /// A width that is no multiple of 8, no segment, offsets that decrease or do not end with the tensors, other numbers
    /// of segments for queries and frames, a segment without a query.
    pub fn check(&self, queries: usize, frames: usize) -> Result<()> {
        let op = "similarity";
        if self.width == 0 || !self.width.is_multiple_of(8) {
            candle_core::bail!("{op}: width {} is no multiple of 8, which the kernels need", self.width)
        }
        check_offsets(op, "query offsets", &self.query_offsets, queries)?;
        check_offsets(op, "frame offsets", &self.frame_offsets, frames)?;
        let (q, f) = (self.query_offsets.len() - 1, self.frame_offsets.len() - 1);
        if q != f {
            candle_core::bail!("{op}: {q} segments of queries, but {f} of frames")
        }
        if let Some(i) = self.query_offsets.windows(2).position(|b| b[0] == b[1]) {
            candle_core::bail!("{op}: segment {i} has no query")
        }
        int(op, "rows", queries.max(frames))?;
        Ok(())
    }

    fn counts(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let lens = |offsets: &'_ [i32], i: usize| (offsets[i + 1] - offsets[i]) as usize;
        (0..self.query_offsets.len() - 1)
            .map(move |i| (lens(&self.query_offsets, i), lens(&self.frame_offsets, i)))
    }

    /// Values of the result.
    pub fn len(&self) -> usize {
        self.counts().map(|(q, t)| q * t).sum()
    }

    /// Whether the result is empty: no segment has a frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn most_queries(&self) -> usize {
        self.counts().map(|(q, _)| q).max().unwrap_or(0)
    }

    /// Queries whose part in the gradients of frames is summed at once: so many that every device has the room.
    fn at_once(&self) -> usize {
        (LITTLE_ROOM / self.query_bytes()).clamp(1, self.most_queries().max(1))
    }

    /// Bytes of shared memory for a query, one over its length, and its weights in eight warps.
    fn query_bytes(&self) -> usize {
        4 * (self.width + 9)
    }

    fn lists(&self, program: &mut Program) -> [Argument; 4] {
        let starts = self.counts().scan(0, |at, (q, t)| {
            let start = *at;
            *at += (q * t) as i64;
            Some(start)
        });
        let starts: Vec<i64> = starts.collect();
        [
            program.ints(self.query_offsets.clone()),
            program.ints(self.frame_offsets.clone()),
            program.add(Buffer::Longs(starts)),
            program.ints(flat(tiles(&self.frame_offsets, FRAMES))),
        ]
    }

    fn tiles(&self) -> usize {
        self.counts().map(|(_, t)| t.div_ceil(FRAMES as usize)).sum()
    }
}

/// Inputs `queries`, `frames`; outputs the similarities of all segments one after another, and one over the length of
/// each frame, both f32.
///
/// # Errors
/// As [`Pairs::check`].
pub fn forward(pairs: &Pairs, queries: usize, frames: usize) -> Result<Program> {
    pairs.check(queries, frames)?;
    let mut program = Program::new("similarity");
    let [q, f] = program.inputs();
    let out = program.output(DType::F32, &[pairs.len()]);
    let inverse = program.output(DType::F32, &[frames]);
    let [query_offsets, frame_offsets, out_offsets, tiles] = pairs.lists(&mut program);
    let room = match pairs.most_queries() {
        0..=4 => 4,
        5..=8 => 8,
        _ => QUERIES,
    };
    let name = format!("similarity_{}", pairs.element.name());
    let (width, scale) = (Int(pairs.width as i32), Float(pairs.scale));
    let arguments = vec![q, f, query_offsets, frame_offsets, out_offsets, tiles, out, inverse, width, scale];
    program.launch(name, pairs.tiles(), (256, 4 * room * pairs.width), arguments)?;
    Ok(program)
}

/// Inputs `queries`, `frames`, one over the lengths of the frames, the similarities and their gradient; outputs the
/// gradients of queries and frames.
///
/// # Errors
/// As [`Pairs::check`].
pub fn backward(pairs: &Pairs, queries: usize, frames: usize) -> Result<Program> {
    pairs.check(queries, frames)?;
    let mut program = Program::new("similarity backward");
    let [q, f, inverse, out, grad] = program.inputs();
    let (dtype, type_name) = (pairs.element.dtype(), pairs.element.name());
    let dq = program.output(dtype, &[queries, pairs.width]);
    let df = program.output(dtype, &[frames, pairs.width]);
    let (tile_count, most) = (pairs.tiles(), pairs.most_queries());
    let partial = program.add(Buffer::Scratch((tile_count * most * pairs.width).max(1)));
    let [query_offsets, frame_offsets, out_offsets, tiles] = pairs.lists(&mut program);
    let (width, scale, most_queries) =
        (Int(pairs.width as i32), Float(pairs.scale), Int(int("similarity", "queries", most)?));
    let name = |part: &str| format!("similarity_backward_{part}_{type_name}");
    let arguments = vec![
        f,
        inverse,
        grad,
        query_offsets,
        frame_offsets,
        out_offsets,
        tiles,
        partial,
        most_queries,
        width,
        scale,
    ];
    program.launch(name("partial"), tile_count, (256, 0), arguments)?;

    let starts = super::offsets("similarity", pairs.counts().map(|(_, t)| t.div_ceil(FRAMES as usize)))?;
    let segments = Int(starts.len() as i32 - 1);
    let starts = program.ints(starts);
    let arguments = vec![q, partial, query_offsets, starts, dq, segments, most_queries, width];
    program.launch(name("queries"), queries, (256, 4 * pairs.width), arguments)?;

    let at_once = pairs.at_once();
    let sums = if at_once < most { frames * pairs.width } else { 1 };
    let sums = program.add(Buffer::Scratch(sums));
    let shared = (at_once * pairs.query_bytes()).next_multiple_of(16);
    let at_once = Int(int("similarity", "queries", at_once)?);
    let arguments = vec![
        q,
        f,
        inverse,
        out,
        grad,
        query_offsets,
        frame_offsets,
        out_offsets,
        tiles,
        df,
        sums,
        at_once,
        width,
        scale,
    ];
    program.launch(name("frames"), tile_count, (256, shared), arguments)?;
    Ok(program)
}
