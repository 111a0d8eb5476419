//! Which devices and drivers the kernels run on.

use candle_core::Result;

/// A device's compute capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// The number before the point.
    pub major: u32,
    /// The number behind it.
    pub minor: u32,
}

impl Capability {
    /// From `86` for 8.6, as `CUDA_COMPUTE_CAP` has it.
    pub fn parse(text: &str) -> Option<Self> {
        let number: u32 = text.trim().parse().ok()?;
        (number >= 10).then_some(Self { major: number / 10, minor: number % 10 })
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What this crate's own kernels need: the code for 8.0 runs on everything later.
pub const LEAST: Capability = Capability { major: 8, minor: 0 };

/// What the tensor library's kernels were built for, where the build said so.
pub fn built() -> Option<Capability> {
    option_env!("MSJOE_COMPUTE_CAP").and_then(Capability::parse)
}

/// That a device runs what was built.
///
/// # Errors
/// A device older than the kernels, or than what the tensor library was built for.
pub fn check(device: Capability, built: Option<Capability>) -> Result<()> {
    if device < LEAST {
        candle_core::bail!(
            "cuda: this device has compute capability {device}, the kernels need {LEAST} or later; use --device cpu"
        )
    }
    match built {
        Some(built) if built > device => candle_core::bail!(
            "cuda: this program was built for compute capability {built}, this device has {device}; rebuild with CUDA_COMPUTE_CAP={}{}",
            device.major,
            device.minor
        ),
        _ => Ok(()),
    }
}

/// A release of the CUDA toolkit, or the latest that a driver serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    /// The number before the point.
    pub major: u32,
    /// The number behind it.
    pub minor: u32,
}

impl Release {
    /// From `13.0`, as the compiler says it.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once('.')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// From 13000, as a driver says it.
    pub fn of_driver(number: u32) -> Self {
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The toolkit that compiled the kernels, where the build said so.
pub fn toolkit() -> Option<Release> {
    option_env!("MSJOE_CUDA").and_then(Release::parse)
}

/// That a driver reads the kernels' code, which it compiles for the device.
///
/// # Errors
/// A driver for an older CUDA than the toolkit.
pub fn check_driver(driver: Release, toolkit: Option<Release>) -> Result<()> {
    // 12.5 and 12.6 write the same version of PTX.
    let same = |release: Release| match (release.major, release.minor) {
        (12, 6) => Release { minor: 5, ..release },
        _ => release,
    };
    match toolkit {
        Some(toolkit) if same(toolkit) > same(driver) => candle_core::bail!(
            "cuda: the driver serves CUDA {driver}, this program was built with the toolkit of CUDA {toolkit}; install a \
             newer driver (580 or later for CUDA 13.0), or rebuild with a toolkit of at most {driver}"
        ),
        _ => Ok(()),
    }
}
