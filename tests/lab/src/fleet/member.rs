//! A relay of the fleet: a process in a cgroup with a CPU quota.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::timeout;

use super::Plan;
use super::report::{Figures, name};
use crate::bench::meter::cpu_of;
use crate::cgroup::{self, Cgroup, Controller};
use crate::port::free_port;
use crate::router::LabRouter;
use crate::scene::{self, Logs};
use crate::{http, metrics};

/// Longest wait for the metrics of a relay, whose quota may be used up.
const SCRAPE: Duration = Duration::from_millis(700);

/// A relay.
pub(super) struct Member {
    index: usize,
    /// In cores.
    quota: f64,
    pub(super) peers: SocketAddr,
    admin: SocketAddr,
    /// Before the cgroup, which can be removed only when it is empty.
    process: Option<Child>,
    cgroup: Cgroup,
    is_draining: bool,
}

impl Member {
    /// Starts a relay and waits until it answers.
    pub(super) async fn start(
        plan: &Plan,
        index: usize,
        router: &LabRouter,
        logs: &Logs,
    ) -> io::Result<Self> {
        let percent = plan.quotas[index];
        let address = || io::Result::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)));
        let (peers, admin) = (address()?, address()?);
        // Longer than any session, so that a drain ends none.
        let drain = Duration::from_millis(super::arrivals::LONGEST) + Duration::from_secs(60);
        let mut settings = scene::settings(router, [peers, admin], plan.sessions, drain);
        if !plan.offer_by_load {
            settings.push(("OfferByLoad", "false".to_owned()));
        }
        let cgroup = Cgroup::new(Controller::Cpu, index)?;
        cgroup.limit_cpu(percent)?;
        let mut command = scene::command_in(&cgroup, cgroup::ENTER_ONLY, &plan.program);
        command.envs(scene::environment(settings, &plan.environment));
        let mut process = logs.spawn(command, &format!("relay-{}.log", index + 1))?;
        scene::wait_until_live(admin, &mut process).await?;
        let (process, quota) = (Some(process), f64::from(percent) / 100.0);
        Ok(Self { index, quota, peers, admin, process, cgroup, is_draining: false })
    }

    /// Whether the relay has the setting `OfferByLoad`.
    pub(super) async fn knows_offer_by_load(&self) -> io::Result<bool> {
        Ok(http::get(self.admin, "/config").await?.body.contains("OfferByLoad"))
    }

    /// Ends the relay as a crash does.
    pub(super) async fn kill(&mut self) -> io::Result<()> {
        if let Some(mut process) = self.process.take() {
            if let Some(id) = process.id() {
                scene::send_signal(id, Signal::KILL)?;
            }
            process.wait().await?;
        }
        Ok(())
    }

    /// Tells the relay to drain.
    pub(super) async fn drain(&mut self) -> io::Result<()> {
        let answer = http::request(self.admin, "POST /drain", &[], "").await?;
        if answer.status != 202 {
            let text = format!("POST /drain: status {} instead of 202", answer.status);
            return Err(io::Error::other(text));
        }
        self.is_draining = true;
        Ok(())
    }

    /// Notices the end of the process. Returns what is wrong with it, if anything is.
    pub(super) fn check(&mut self) -> io::Result<Option<String>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let Some(status) = process.try_wait()? else { return Ok(None) };
        self.process = None;
        let is_good = self.is_draining && status.success();
        Ok((!is_good).then(|| format!("{} has ended: {status}", name(self.index))))
    }

    /// What the kernel says about it now.
    pub(super) fn measure(&self) -> Option<Figures> {
        let id = self.process.as_ref()?.id()?;
        let throttled = self.cgroup.throttled();
        Some(Figures { cpu: cpu_of(id), throttled, ..Figures::default() })
    }

    /// Its `aspia_relay_headroom_ratio`, if it has one and answers in time.
    pub(super) async fn headroom(&self) -> Option<f64> {
        let scraped = timeout(SCRAPE, metrics::scrape(self.admin)).await;
        scraped.ok()?.ok().and_then(|text| headroom(&text))
    }

    pub(super) fn quota(&self) -> f64 {
        self.quota
    }
}

/// `aspia_relay_headroom_ratio`, if the relay has that metric.
fn headroom(text: &str) -> Option<f64> {
    const NAME: &str = "aspia_relay_headroom_ratio";
    let has = text.lines().any(|line| line.starts_with(NAME));
    has.then(|| metrics::sum(text, NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_without_the_metric_has_no_headroom_rather_than_none_left() {
        assert_eq!(headroom("aspia_relay_keys{state=\"offered\"} 4\n"), None);
        assert_eq!(headroom("# TYPE x gauge\naspia_relay_headroom_ratio 0.25\n"), Some(0.25));
        assert_eq!(headroom("aspia_relay_headroom_ratio 0\n"), Some(0.0));
    }
}
