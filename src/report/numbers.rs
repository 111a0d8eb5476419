//! Numbers as a reader wants them: ticks, digits, times.

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A share, written in percent.
    Share,
    /// Anything else, written as it is.
    Plain,
}

impl Unit {
    /// In a table or a read-out, without the sign of the unit.
    pub fn say(self, value: f64) -> String {
        match self {
            Self::Share => format!("{:.1}", 100.0 * value),
            Self::Plain => number(value),
        }
    }

    /// At an axis whose ticks are `step` apart.
    fn tick(self, value: f64, step: f64) -> String {
        let (value, step) = if self == Self::Share { (100.0 * value, 100.0 * step) } else { (value, step) };
        let small = value != 0.0 && value.abs() < 1e-3;
        if small || value.abs() >= 1e6 {
            return number(value);
        }
        let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
        // No minus before a zero.
        let text = format!("{value:.digits$}");
        if text.trim_start_matches('-').chars().all(|c| "0.".contains(c)) {
            text.replace('-', "")
        } else {
            text
        }
    }
}

/// Four significant digits without trailing zeros.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let size = value.abs().log10().floor();
    if !(-4.0..6.0).contains(&size) {
        let text = format!("{value:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", digits.trim_end_matches('0').trim_end_matches('.'));
    }
    let digits = (3.0 - size).clamp(0.0, 8.0) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `0:03:12.5`: hours, minutes, seconds; tenths where there are some.
pub fn clock(seconds: f64) -> String {
    let tenths = (10.0 * seconds.max(0.0)).round() as u64;
    let (whole, tenth) = (tenths / 10, tenths % 10);
    let text = format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
    if tenth == 0 { text } else { format!("{text}.{tenth}") }
}

/// Seconds of work with about three digits; minutes from ten on, hours from two on.
pub(super) fn took(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.2} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 600.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(count: usize) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, c) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A stretch of numbers on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    /// Steps are factors of two.
    doubling: bool,
    /// Place and text of each tick.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From tick to tick around `values`, with zero where it is near.
    pub fn around(values: &[f64], unit: Unit) -> Self {
        let (mut low, mut high) = extent(values);
        if low > 0.0 && low < 0.3 * high {
            low = 0.0;
        }
        if high - low < 1e-9 * high.abs().max(1e-9) {
            let half = if high == 0.0 { 0.5 } else { 0.1 * high.abs() };
            (low, high) = (low - half, high + half);
        }
        let step = nice((high - low) / 4.0);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let (mut from, mut to) = (first * step, last * step);
        if unit == Unit::Share && extent(values).0 >= 0.0 && extent(values).1 <= 1.0 {
            (from, to) = (from.max(0.0), to.min(1.0));
        }
        Self::with_ticks(from, to, step, unit)
    }

    /// Exactly the extent of `values`, ticks within.
    pub fn exact(values: &[f64]) -> Self {
        let (low, high) = extent(values);
        let step = nice((high - low) / 6.0).max(1.0);
        let mut axis = Self::with_ticks(low, high, step, Unit::Plain);
        axis.ticks.retain(|(value, _)| value.fract().abs() < 1e-9);
        axis
    }

    /// The extent of `values`, a tick at each; equal factors take equal room where the values span a factor of four.
    pub fn at(values: &[f64]) -> Self {
        let (low, high) = extent(values);
        let ticks = values.iter().map(|&value| (value, number(value))).collect();
        Self { low, high, doubling: low > 0.0 && high >= 4.0 * low, ticks }
    }

    /// Times of a video, 0 to `duration` seconds.
    pub fn time(duration: f64) -> Self {
        const STEPS: [f64; 15] =
            [0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0];
        let wanted = duration / 6.0;
        let long = (wanted / 3600.0).ceil() * 3600.0;
        let step = STEPS.iter().copied().find(|&step| step >= wanted).unwrap_or(long);
        let mut axis = Self::with_ticks(0.0, duration, step, Unit::Plain);
        axis.ticks.iter_mut().for_each(|(value, text)| *text = clock(*value));
        axis
    }

    fn with_ticks(low: f64, high: f64, step: f64, unit: Unit) -> Self {
        let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
        let ticks = (first..=last.min(first + 40)).map(|n| n as f64 * step);
        let ticks = ticks.map(|value| (value, unit.tick(value, step))).collect();
        Self { low, high, doubling: false, ticks }
    }

    /// Whether equal factors take equal room.
    pub fn doubling(&self) -> bool {
        self.doubling
    }

    /// Where `value` lies, 0 to 1; a stretch without length has everything in its middle.
    pub fn place(&self, value: f64) -> f64 {
        let (low, high, value) = match self.doubling {
            true => (self.low.ln(), self.high.ln(), value.max(f64::MIN_POSITIVE).ln()),
            false => (self.low, self.high, value),
        };
        if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
    }
}

/// Smallest and largest of the finite values; 0 to 1 for none.
pub(super) fn extent(values: &[f64]) -> (f64, f64) {
    let finite = values.iter().copied().filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-12).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}
