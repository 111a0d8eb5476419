//! Attention of one new row per sequence over cached keys: `kernels/attention_decode.cu`.

use candle_core::{DType, Result};

use super::Argument::{Float, Int};
use super::attention::Shape;
use super::{Buffer, Element, Program, int, tile_bytes};

/// Keys of a tile; pieces are cut at multiples of it.
const TILE: usize = 64;

/// A run of keys that a sequence attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which pair of key and value tensors. Sequences that name the same one share it, and it is read once.
    pub pair: usize,
    /// Rows of it, from the first.
    pub len: usize,
}

/// What `sequences[i]`, whose query is row `i`, attends to, and how the work is cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Cached {
    /// Runs of each sequence, in any order.
    pub sequences: Vec<Vec<Run>>,
    /// Rows of each pair's tensors.
    pub rows: Vec<usize>,
    /// Factor of the scores, above 0.
    pub scale: f32,
    /// Multiprocessors of the device.
    pub multiprocessors: usize,
}

/// Neighbouring sequences with the same run, which are served together.
struct Group {
    pair: usize,
    len: usize,
    first_query: usize,
    queries: usize,
}

/// A piece of a group's keys.
struct Item {
    pair: usize,
    first_key: usize,
    keys: usize,
    first_query: usize,
    queries: usize,
}

impl Cached {
    fn check(&self, op: &str, shape: &Shape) -> Result<()> {
        if self.sequences.len() != shape.rows {
            candle_core::bail!("{op}: {} sequences for {} rows of queries", self.sequences.len(), shape.rows)
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            candle_core::bail!("{op}: scale {} is not above 0", self.scale)
        }
        if shape.heads / shape.kv_heads > 64 {
            candle_core::bail!(
                "{op}: {} query heads for {} key heads; the kernels take up to 64 for each",
                shape.heads,
                shape.kv_heads
            )
        }
        for (i, run) in
            self.sequences.iter().enumerate().flat_map(|(i, runs)| runs.iter().map(move |run| (i, run)))
        {
            match self.rows.get(run.pair) {
                Some(rows) if run.len <= *rows => {}
                Some(rows) => candle_core::bail!(
                    "{op}: sequence {i} attends to {} rows of pair {}, which has {rows}",
                    run.len,
                    run.pair
                ),
                None => candle_core::bail!(
                    "{op}: sequence {i} attends to pair {}, but there are {} pairs of keys and values",
                    run.pair,
                    self.rows.len()
                ),
            }
        }
        int(op, "keys", self.rows.iter().copied().max().unwrap_or(0))?;
        Ok(())
    }

    /// Groups of at most `most` queries.
    fn groups(&self, most: usize) -> Vec<Group> {
        let mut uses: Vec<(usize, usize, usize)> = (self.sequences.iter().enumerate())
            .flat_map(|(query, runs)| runs.iter().map(move |run| (run.pair, run.len, query)))
            .collect();
        uses.sort_unstable();
        let mut groups: Vec<Group> = vec![];
        for (pair, len, query) in uses {
            match groups.last_mut() {
                Some(group)
                    if (group.pair, group.len) == (pair, len)
                        && group.first_query + group.queries == query
                        && group.queries < most =>
                {
                    group.queries += 1;
                }
                _ => groups.push(Group { pair, len, first_query: query, queries: 1 }),
            }
        }
        groups
    }

    /// Keys of a piece: so many that about two blocks come to each multiprocessor. What a group shares is read once, and
    /// counts once.
    fn piece(&self, groups: &[Group], kv_heads: usize) -> usize {
        let keys: usize = groups.iter().map(|group| group.len).sum();
        let even = (keys * kv_heads).div_ceil(2 * self.multiprocessors.max(1));
        even.next_multiple_of(TILE).max(TILE)
    }

    /// The pieces of all groups, of which each has at most `most` queries.
    fn items(&self, most: usize, kv_heads: usize) -> Vec<Item> {
        let groups = self.groups(most);
        let piece = self.piece(&groups, kv_heads);
        let pieces = |group: Group| {
            let Group { pair, len, first_query, queries } = group;
            (0..len).step_by(piece).map(move |first_key| {
                let keys = piece.min(len - first_key);
                Item { pair, first_key, keys, first_query, queries }
            })
        };
        groups.into_iter().flat_map(pieces).collect()
    }
}

/// Inputs `q`, then keys and values of each pair; output (N, H, D).
///
/// # Errors
/// Another number of sequences than rows, a run beyond its tensors, a scale that is not above 0, more than 64 query heads for
/// a key head.
pub fn decode(cached: &Cached, shape: &Shape) -> Result<Program> {
    let op = "attention over a cache";
    cached.check(op, shape)?;
    let (group, row_bytes) =
        (shape.heads / shape.kv_heads, shape.kv_heads * shape.width * shape.element.bytes());
    let items = cached.items(64 / group, shape.kv_heads);
    let slots: usize = items.iter().map(|item| item.queries).sum();
    let mut program = Program::new(op);
    let [q] = program.inputs();
    let out = program.output(shape.element.dtype(), &[shape.rows, shape.heads, shape.width]);
    let partial = program.add(Buffer::Scratch((slots * shape.heads * shape.width).max(1)));
    let partial_lse = program.add(Buffer::Scratch((slots * shape.heads).max(1)));
    let [heads, kv_heads, width] = [shape.heads, shape.kv_heads, shape.width].map(|x| Int(x as i32));

    let mut own: Vec<Vec<i32>> = vec![vec![]; shape.rows];
    let mut slot = 0;
    let (mut few, mut many) = (Launched::default(), Launched::default());
    for item in &items {
        let to = if item.queries * group <= 16 { &mut few } else { &mut many };
        let at = item.first_key * row_bytes;
        to.keys.push((1 + 2 * item.pair, at));
        to.values.push((2 + 2 * item.pair, at));
        to.items.extend([item.keys, item.first_query, item.queries, slot].map(|x| x as i32));
        for i in 0..item.queries {
            own[item.first_query + i].push(int(op, "pieces", slot + i)?);
        }
        slot += item.queries;
    }
    for (part, rows) in [(few, 16), (many, 64)] {
        if part.keys.is_empty() {
            continue;
        }
        let blocks = part.keys.len() * shape.kv_heads;
        let [keys_at, values_at] = [part.keys, part.values].map(|x| program.add(Buffer::Addresses(x)));
        let list = program.ints(part.items);
        let arguments =
            vec![q, keys_at, values_at, list, partial, partial_lse, heads, kv_heads, Float(cached.scale)];
        let name = format!("attention_decode_{}_{}_{rows}", shape.element.name(), shape.width);
        program.launch(name, blocks, (128, decode_shared(shape, rows)), arguments)?;
    }
    let starts = super::offsets(op, own.iter().map(Vec::len))?;
    let mut slots: Vec<i32> = own.concat();
    if slots.is_empty() {
        slots.push(0);
    }
    let (starts, slots) = (program.ints(starts), program.ints(slots));
    let arguments = vec![partial, partial_lse, starts, slots, out, heads, width];
    let name = format!("attention_combine_{}", shape.element.name());
    program.launch(name, shape.rows * shape.heads, (128, 0), arguments)?;
    Ok(program)
}

#[derive(Default)]
struct Launched {
    keys: Vec<(usize, usize)>,
    values: Vec<(usize, usize)>,
    items: Vec<i32>,
}

/// Queries with two stages of keys and values, or what the warps merge, whichever is more.
fn decode_shared(shape: &Shape, rows: usize) -> usize {
    let keys = if shape.element == Element::F32 { 32 } else { 64 };
    let merge = 64 * (shape.width + 1) * DType::F32.size_in_bytes();
    tile_bytes(shape.element, shape.width, rows + 4 * keys).max(merge)
}
