//! The settings of all methods in one place.

use super::aks::Aks;
use super::bolt::Bolt;
use super::dpp::Dpp;
use super::f2c::F2c;
use super::focus::Focus;
use super::max_info::MaxInfo;
use super::mdp3::Mdp3;
use super::q_frame::QFrame;
use super::qca::Qca;

/// Whether the budget of K frames is spent on K full frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resolution {
    /// Every frame at full size.
    #[default]
    Full,
    /// The tokens of K full frames: `q-frame` shows frames in three sizes, `f2c` more and smaller frames.
    Adaptive,
}

/// Settings of the methods behind [`super::select`]; the defaults are the published ones where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Settings {
    /// Of `q-frame` and `f2c`.
    pub resolution: Resolution,
    /// Of `bolt`.
    pub bolt: Bolt,
    /// Of `aks`.
    pub aks: Aks,
    /// Of `q-frame`.
    pub q_frame: QFrame,
    /// Of `mdp3`.
    pub mdp3: Mdp3,
    /// Of `dpp`.
    pub dpp: Dpp,
    /// Of `maxinfo`.
    pub max_info: MaxInfo,
    /// Of `focus`.
    pub focus: Focus,
    /// Of `qca`.
    pub qca: Qca,
    /// Of `f2c`.
    pub f2c: F2c,
}
