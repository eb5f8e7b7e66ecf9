//! Tests that pass with every Router and every data plane. Each test is compiled once and listed for each variant, in a module
//! named after it: `suite::link::v3::…`, `suite::forwarding::splice::…`. A test that is not listed is dead code, which the
//! compiler reports.

use aspia_relay::app::DataPlane;
#[cfg(target_os = "linux")]
use aspia_relay::forward::TransferMethod;
#[cfg(target_os = "linux")]
use aspia_relay::open_files::MAX_PIPES;
use aspia_relay::workers::Workers;
use relay_lab::relay::Lab;
use relay_lab::router::{Options, RouterVersion};
use relay_lab::traffic;

/// Lists tests in a module for one variant, with their attributes.
macro_rules! variant {
    ($variant:ident, $setup:expr, $($(#[$attribute:meta])* $test:ident;)*) => {
        mod $variant {
            $($(#[$attribute])* async fn $test() { super::$test($setup).await; })*
        }
    };
}

/// Lists tests for each dialect of the Router.
macro_rules! for_each_router {
    ($($tests:tt)*) => {
        variant!(v2, $crate::suite::Setup::V2, $($tests)*);
        variant!(v3, $crate::suite::Setup::V3, $($tests)*);
    };
}

/// Lists tests for each dialect of the Router, and for each way to move bytes.
macro_rules! for_each_data_plane {
    ($($tests:tt)*) => {
        for_each_router!($($tests)*);
        #[cfg(target_os = "linux")]
        variant!(copy, $crate::suite::Setup::COPY, $($tests)*);
        #[cfg(target_os = "linux")]
        variant!(splice, $crate::suite::Setup::SPLICE, $($tests)*);
        #[cfg(target_os = "linux")]
        variant!(one_pipe, $crate::suite::Setup::ONE_PIPE, $($tests)*);
        #[cfg(target_os = "linux")]
        variant!(restless, $crate::suite::Setup::RESTLESS, $($tests)*);
    };
}

mod detaching;
mod forwarding;
mod link;
mod pairing;
mod peer_relay;
mod records;
mod restarts;
mod stopping;
mod suspending;
#[cfg(target_os = "linux")]
mod takeover;

/// The Router and the data plane of a test.
#[derive(Clone, Copy)]
struct Setup {
    router: RouterVersion,
    data_plane: fn() -> DataPlane,
}

impl Setup {
    const V2: Self = Self { router: RouterVersion::V2_7, data_plane: default_data_plane };
    const V3: Self = Self { router: RouterVersion::V3_0, data_plane: default_data_plane };

    fn options(self) -> Options {
        Options { version: self.router, ..Options::default() }
    }

    fn data_plane(self) -> DataPlane {
        (self.data_plane)()
    }

    /// `RouterProtocol` for the Router.
    fn protocol(self) -> &'static str {
        if self.router.is_v3() { "3" } else { "2" }
    }
}

#[cfg(target_os = "linux")]
impl Setup {
    const COPY: Self = Self { data_plane: || forced(TransferMethod::Copy, 0), ..Self::V2 };
    const SPLICE: Self =
        Self { data_plane: || forced(TransferMethod::Splice, MAX_PIPES), ..Self::V2 };
    /// One pipe for all sessions: those that do not get it copy.
    const ONE_PIPE: Self = Self { data_plane: || forced(TransferMethod::Splice, 1), ..Self::V2 };
    /// Sessions are detached and attached again whenever they have moved bytes, even with bytes in flight, as if they moved to
    /// another thread.
    const RESTLESS: Self =
        Self { data_plane: || DataPlane::on(crate::paths::restless_workers()), ..Self::V2 };
}

fn default_data_plane() -> DataPlane {
    DataPlane::on(Workers::on_current_runtime())
}

#[cfg(target_os = "linux")]
fn forced(method: TransferMethod, max_pipes: usize) -> DataPlane {
    DataPlane { workers: Workers::on_current_runtime(), method, max_pipes }
}

/// Checks that a new session through the relay of `lab` carries bytes in both directions.
pub(crate) async fn carries_bytes(lab: &Lab) {
    let (mut client, mut host) =
        lab.router.introduce().await.unwrap().connect_both().await.unwrap();
    traffic::send(&mut client, 1, 1000).await.unwrap();
    traffic::send(&mut host, 2, 1000).await.unwrap();
    let at_host = traffic::receive(&mut host, Some(1000)).await.unwrap();
    let at_client = traffic::receive(&mut client, Some(1000)).await.unwrap();
    assert_eq!(at_host, (1000, traffic::hash(1, 1000)));
    assert_eq!(at_client, (1000, traffic::hash(2, 1000)));
}
