//! Putting a plan's scenes in order, and giving every scene its place, its length and its things.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::plan::{Case, Plan};
use super::scene::Scene;
use super::spec::{Length, Spec};
use super::thing::{Colour, Kind, Place, Size, Thing};

/// What a scene is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Filler,
    Needle,
    Category,
    Before,
    Named,
    After,
    /// The earlier, the later thing of an order question, or both.
    Earlier,
    Later,
    Together,
    Occurrence,
}

/// A scene in the making; a filler's length is 0 until it is known.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub role: Role,
    pub kinds: Vec<Kind>,
    pub seconds: usize,
    pub place: Place,
}

/// A place is shown most when it has 42 % of the time or more, and 1.6 times the second.
const SHARE: f64 = 0.42;
const LEAD: f64 = 1.6;

/// The scenes of a video with their roles.
pub(super) fn build(spec: &Spec, plan: &Plan, length: usize, rng: &mut StdRng) -> Vec<Draft> {
    let blocks = planned(spec, plan, rng);
    let fixed: usize = blocks.iter().flatten().map(|draft| draft.seconds).sum();
    let scenes: usize = blocks.iter().map(Vec::len).sum();
    let occurrences = plan.count.map_or(0, |(_, times)| times);
    // Between occurrences lie other blocks, and fillers where those are too few.
    let least = (2 * occurrences).saturating_sub(blocks.len() + 1);
    let Spec { scene_seconds: span, .. } = spec;
    let (fillers, total) = match spec.length {
        Length::Scenes(_) => {
            let fillers = length.saturating_sub(scenes).max(least);
            (fillers, fixed + (0..fillers).map(|_| span.draw(rng)).sum::<usize>())
        }
        Length::Seconds(_) => {
            let rest = length.saturating_sub(fixed);
            let mean = span.max as f64 * rng.random_range(0.4..0.6);
            let wanted = (rest as f64 / mean).round() as usize;
            let (low, high) = (rest.div_ceil(span.max).max(least), rest / span.min);
            (wanted.max(low).min(high.max(low)), length)
        }
    };
    let mut fallback = None;
    for _ in 0..60 {
        let mut drafts = arrange(spec, plan, blocks.clone(), fillers, rng);
        give_places(&mut drafts, rng);
        let settled = give_lengths(spec, &mut drafts, total, rng);
        if settled && most_shown(&drafts).is_some() {
            even_out(plan, &mut drafts, rng);
            return drafts;
        }
        fallback.get_or_insert(drafts);
    }
    // No place leads in any of them: the video serves the other families.
    let mut drafts = fallback.unwrap_or_default();
    let rest = total.saturating_sub(fixed);
    let mut lengths = split(rest, fillers, spec, rng).unwrap_or_default().into_iter();
    for draft in drafts.iter_mut().filter(|draft| draft.role == Role::Filler) {
        draft.seconds = lengths.next().unwrap_or(span.min);
    }
    even_out(plan, &mut drafts, rng);
    drafts
}

/// A thing whose colour is asked for adds to that colour's number in the video. One filler of that colour gets a random
/// one, so that the numbers of all colours are as if the answer had not been among them: the most frequent colour is the
/// answer no more often than another.
fn even_out(plan: &Plan, drafts: &mut [Draft], rng: &mut StdRng) {
    for asked in [plan.needle, plan.category].into_iter().flatten() {
        let mut fillers: Vec<&mut Kind> = (drafts.iter_mut())
            .filter(|draft| draft.role == Role::Filler)
            .flat_map(|draft| &mut draft.kinds)
            .filter(|kind| kind.colour == asked.colour)
            .collect();
        if fillers.is_empty() {
            continue;
        }
        let at = rng.random_range(0..fillers.len());
        let kind = Kind { colour: Colour::ALL[rng.random_range(0..6)], ..*fillers[at] };
        if plan.is_free(kind) {
            *fillers[at] = kind;
        }
    }
}

/// The planned scenes in blocks that stay together; each occurrence of a counted thing is its own block.
fn planned(spec: &Spec, plan: &Plan, rng: &mut StdRng) -> Vec<Vec<Draft>> {
    let mut blocks = vec![];
    let one = |role, kinds: &[Kind], rng: &mut StdRng| {
        let mut draft = draft(spec, plan, role, kinds, rng);
        draft.seconds = spec.evidence_seconds.draw(rng);
        draft
    };
    if let Some(kind) = plan.needle {
        blocks.push(vec![one(Role::Needle, &[kind], rng)]);
    }
    if let Some(kind) = plan.category {
        blocks.push(vec![one(Role::Category, &[kind], rng)]);
    }
    if let Some((kind, _)) = plan.neighbour {
        let before = plan.filler(spec, &[kind.noun], rng);
        let mut after = before;
        while after == before {
            after = plan.filler(spec, &[kind.noun], rng);
        }
        let named = one(Role::Named, &[kind], rng);
        let [before, after] = [(Role::Before, before), (Role::After, after)].map(|(role, kind)| {
            let seconds = spec.evidence_seconds.draw(rng);
            Draft { role, kinds: vec![kind], seconds, place: Place::Grass }
        });
        blocks.push(vec![before, named, after]);
    }
    match plan.order {
        Some((a, b, Case::First)) => {
            blocks.push(vec![one(Role::Earlier, &[a], rng)]);
            blocks.push(vec![one(Role::Later, &[b], rng)]);
        }
        Some((a, b, Case::Second)) => {
            blocks.push(vec![one(Role::Earlier, &[b], rng)]);
            blocks.push(vec![one(Role::Later, &[a], rng)]);
        }
        Some((a, b, Case::Both)) => blocks.push(vec![one(Role::Together, &[a, b], rng)]),
        Some((_, _, Case::Neither)) | None => {}
    }
    if let Some((kind, times)) = plan.count {
        for time in 0..times {
            let mut draft = one(Role::Occurrence, &[kind], rng);
            if time == 0 {
                draft.seconds = rng.random_range(spec.scene_seconds.max * 3 / 5..=spec.scene_seconds.max);
            }
            blocks.push(vec![draft]);
        }
    }
    blocks
}

/// A scene of `kinds` and as many others as the spec asks for.
fn draft(spec: &Spec, plan: &Plan, role: Role, kinds: &[Kind], rng: &mut StdRng) -> Draft {
    let mut kinds = kinds.to_vec();
    let count = spec.things.draw(rng);
    while kinds.len() < count {
        let nouns: Vec<_> = kinds.iter().map(|kind| kind.noun).collect();
        kinds.push(plan.filler(spec, &nouns, rng));
    }
    kinds.shuffle(rng);
    Draft { role, kinds, seconds: 0, place: Place::Grass }
}

/// Blocks and fillers in random order; no two occurrences adjacent, `Earlier` before `Later`.
fn arrange(
    spec: &Spec,
    plan: &Plan,
    blocks: Vec<Vec<Draft>>,
    fillers: usize,
    rng: &mut StdRng,
) -> Vec<Draft> {
    let (mut occurrences, mut others): (Vec<_>, Vec<_>) =
        blocks.into_iter().partition(|block| block.iter().all(|draft| draft.role == Role::Occurrence));
    others.extend((0..fillers).map(|_| vec![draft(spec, plan, Role::Filler, &[], rng)]));
    others.shuffle(rng);
    occurrences.shuffle(rng);
    let gaps = rand::seq::index::sample(rng, others.len() + 1, occurrences.len().min(others.len() + 1));
    let mut gaps = gaps.into_vec();
    gaps.sort_unstable();
    for (gap, occurrence) in gaps.into_iter().zip(occurrences).rev() {
        others.insert(gap, occurrence);
    }
    let mut drafts: Vec<Draft> = others.into_iter().flatten().collect();
    let find = |role| drafts.iter().position(|draft| draft.role == role);
    if let (Some(earlier), Some(later)) = (find(Role::Earlier), find(Role::Later))
        && earlier > later
    {
        drafts.swap(earlier, later);
    }
    drafts
}

/// One place for about two fifths of the scenes, the others for the rest; adjacent scenes differ, and so do all
/// occurrences of a counted thing.
fn give_places(drafts: &mut [Draft], rng: &mut StdRng) {
    let most = Place::ALL[rng.random_range(0..6)];
    let wanted = (drafts.len() as f64 * rng.random_range(0.34..0.44)).ceil() as usize;
    let mut order: Vec<usize> = (0..drafts.len()).collect();
    order.shuffle(rng);
    let mut marked = vec![false; drafts.len()];
    for at in order {
        let beside = [at.wrapping_sub(1), at + 1].iter().any(|&n| marked.get(n) == Some(&true));
        let again = drafts[at].role == Role::Occurrence
            && drafts.iter().zip(&marked).any(|(draft, marked)| *marked && draft.role == Role::Occurrence);
        if !beside && !again && marked.iter().filter(|marked| **marked).count() < wanted {
            marked[at] = true;
        }
    }
    let mut of_occurrences = vec![];
    for at in 0..drafts.len() {
        let counted = drafts[at].role == Role::Occurrence;
        let free: Vec<Place> = (Place::ALL.into_iter())
            .filter(|&place| place != most && (at == 0 || drafts[at - 1].place != place))
            .filter(|place| !counted || !of_occurrences.contains(place))
            .collect();
        // At least one is free: of the other five, one is the scene's before and three are of occurrences.
        drafts[at].place = if marked[at] { most } else { free[rng.random_range(0..free.len())] };
        if counted {
            of_occurrences.push(drafts[at].place);
        }
    }
}

/// Lengths of the fillers such that the marked place has its share; `false` when that is impossible.
fn give_lengths(spec: &Spec, drafts: &mut [Draft], total: usize, rng: &mut StdRng) -> bool {
    let mut numbers = [0usize; 6];
    drafts.iter().for_each(|draft| numbers[draft.place as usize] += 1);
    let Some(most) = Place::ALL.into_iter().max_by_key(|&place| numbers[place as usize]) else {
        return false;
    };
    let filler = |draft: &Draft| draft.role == Role::Filler;
    let tally = |of_most: bool| {
        let chosen = drafts.iter().filter(|draft| (draft.place == most) == of_most);
        let fixed: usize = chosen.clone().filter(|draft| !filler(draft)).map(|draft| draft.seconds).sum();
        (fixed, chosen.filter(|draft| filler(draft)).count())
    };
    let ((fixed, fillers), (other_fixed, other_fillers)) = (tally(true), tally(false));
    let (min, max) = (spec.scene_seconds.min, spec.scene_seconds.max);
    let high = if drafts.len() < 8 { total } else { (total as f64 * 0.52) as usize };
    let low = ((total as f64 * SHARE).ceil() as usize)
        .max(fixed + fillers * min)
        .max(total.saturating_sub(other_fixed + other_fillers * max));
    let high = high.min(fixed + fillers * max).min(total.saturating_sub(other_fixed + other_fillers * min));
    if low > high {
        return false;
    }
    let share = rng.random_range(low..=high);
    let lengths = split(share - fixed, fillers, spec, rng);
    let others = split(total - share - other_fixed, other_fillers, spec, rng);
    let (Some(lengths), Some(others)) = (lengths, others) else { return false };
    let (mut lengths, mut others) = (lengths.into_iter(), others.into_iter());
    for draft in drafts.iter_mut().filter(|draft| draft.role == Role::Filler) {
        let next = if draft.place == most { lengths.next() } else { others.next() };
        draft.seconds = next.unwrap_or(min);
    }
    true
}

/// `seconds` in `parts` random scene lengths.
fn split(seconds: usize, parts: usize, spec: &Spec, rng: &mut StdRng) -> Option<Vec<usize>> {
    let (min, max) = (spec.scene_seconds.min, spec.scene_seconds.max);
    if seconds < parts * min || seconds > parts * max {
        return None;
    }
    let mut lengths: Vec<usize> = (0..parts).map(|_| spec.scene_seconds.draw(rng)).collect();
    let mut sum: usize = lengths.iter().sum();
    while sum != seconds {
        let at = rng.random_range(0..parts);
        if sum < seconds && lengths[at] < max {
            lengths[at] += 1;
            sum += 1;
        } else if sum > seconds && lengths[at] > min {
            lengths[at] -= 1;
            sum -= 1;
        }
    }
    Some(lengths)
}

/// The place that is clearly shown most, if there is one.
pub(super) fn most_shown(drafts: &[Draft]) -> Option<Place> {
    let mut seconds = [0usize; 6];
    drafts.iter().for_each(|draft| seconds[draft.place as usize] += draft.seconds);
    let total: usize = seconds.iter().sum();
    let most = Place::ALL.into_iter().max_by_key(|&place| seconds[place as usize])?;
    let own = seconds[most as usize] as f64;
    let clear = (Place::ALL.iter()).all(|&p| p == most || own >= LEAD * seconds[p as usize] as f64);
    (clear && own >= SHARE * total as f64).then_some(most)
}

/// The scenes as they are painted.
pub(super) fn stage(spec: &Spec, drafts: &[Draft], rng: &mut StdRng) -> Vec<Scene> {
    let mut start = 0;
    let scene = |draft: &Draft| {
        let cells = cells(draft.kinds.len(), rng);
        let pairs = draft.kinds.iter().zip(cells);
        let things = pairs.map(|(&kind, cell)| thing(spec, kind, cell, rng)).collect();
        let Draft { seconds, place, .. } = *draft;
        start += seconds;
        Scene { start: start - seconds, seconds, place, things, look: rng.random() }
    };
    drafts.iter().map(scene).collect()
}

/// One part of the frame per thing, `[left, top, right, bottom]`, top to bottom and left to right.
fn cells(count: usize, rng: &mut StdRng) -> Vec<[f32; 4]> {
    match count {
        0 | 1 => vec![[0., 0., 1., 1.]],
        2 if rng.random_bool(0.5) => vec![[0., 0., 0.5, 1.], [0.5, 0., 1., 1.]],
        2 => vec![[0., 0., 1., 0.5], [0., 0.5, 1., 1.]],
        _ => {
            let mut cells =
                vec![[0., 0., 0.5, 0.5], [0.5, 0., 1., 0.5], [0., 0.5, 0.5, 1.], [0.5, 0.5, 1., 1.]];
            cells.remove(rng.random_range(0..4));
            cells
        }
    }
}

fn thing(spec: &Spec, kind: Kind, cell: [f32; 4], rng: &mut StdRng) -> Thing {
    let size = Size::ALL[rng.random_range(0..2)];
    let extent = if size == Size::Small { spec.small } else { spec.large };
    let radius = extent / 2. * rng.random_range(0.93..1.0);
    let [left, top, right, bottom] = cell;
    let shrink = |low: f32, high: f32| {
        let middle = (low + high) / 2.;
        ((low + radius).min(middle), (high - radius).max(middle))
    };
    let ((left, right), (top, bottom)) = (shrink(left, right), shrink(top, bottom));
    let mut symmetric = |most: f32| if most > 0. { rng.random_range(-most..most) } else { 0. };
    let velocity = [symmetric(spec.motion), symmetric(spec.motion)];
    let tilt = symmetric(0.13);
    let tint = [0; 3].map(|_: i16| symmetric(spec.tint as f32) as i16);
    let mut within = |low: f32, high: f32| if high > low { rng.random_range(low..high) } else { low };
    Thing {
        noun: kind.noun,
        colour: kind.colour,
        size,
        radius,
        position: [within(left, right), within(top, bottom)],
        velocity,
        bounds: [[left, top], [right, bottom]],
        tilt,
        tint,
    }
}
