//! The resources that limit how many sessions a relay can carry.

use std::ops::{Index, IndexMut};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A resource of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// The processors that this process may use.
    Cpu,
    /// `TotalBandwidth`.
    Bandwidth,
    /// The file descriptors for peers.
    Descriptors,
    /// The memory of the machine, or of the control group.
    Memory,
}

impl Resource {
    /// All resources.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Bandwidth, Self::Descriptors, Self::Memory];

    /// Returns the name of the resource.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Bandwidth => "bandwidth",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
        }
    }
}

/// How much of each resource is in use, from 0 to 1 (all of it). `None`: it has no limit, or cannot be measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ResourceUse {
    /// See [`Resource::Cpu`].
    pub cpu: Option<f64>,
    /// See [`Resource::Bandwidth`].
    pub bandwidth: Option<f64>,
    /// See [`Resource::Descriptors`].
    pub descriptors: Option<f64>,
    /// See [`Resource::Memory`].
    pub memory: Option<f64>,
}

impl Index<Resource> for ResourceUse {
    type Output = Option<f64>;

    fn index(&self, resource: Resource) -> &Option<f64> {
        match resource {
            Resource::Cpu => &self.cpu,
            Resource::Bandwidth => &self.bandwidth,
            Resource::Descriptors => &self.descriptors,
            Resource::Memory => &self.memory,
        }
    }
}

impl IndexMut<Resource> for ResourceUse {
    fn index_mut(&mut self, resource: Resource) -> &mut Option<f64> {
        match resource {
            Resource::Cpu => &mut self.cpu,
            Resource::Bandwidth => &mut self.bandwidth,
            Resource::Descriptors => &mut self.descriptors,
            Resource::Memory => &mut self.memory,
        }
    }
}

/// Measures how much of the resources is in use. Tests provide measurements of their own.
pub trait MeasureResources: Send {
    /// Returns what is in use at `now`; of a rate, on average since the last call.
    fn measure(&mut self, now: Instant) -> ResourceUse;
}
