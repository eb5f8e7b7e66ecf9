//! The limits on how many sessions one user and one host have at once (`MaxSessionsPerUser`, `MaxSessionsPerHost`).
//!
//! Users and hosts are told apart by what the Router says about them (docs/protocol.md, "A peer's first message"). A name or a number that
//! is not known is not limited, since nobody can tell whose it is.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::num::NonZero;

use crate::printable::escape_line;

use super::identity::PeerIdentity;

/// The most sessions at once; `None` means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdentityLimits {
    /// Of one user name (`MaxSessionsPerUser`).
    pub per_user: Option<NonZero<u32>>,
    /// Of one host number (`MaxSessionsPerHost`).
    pub per_host: Option<NonZero<u32>>,
}

/// The limit that a session would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdentityLimit {
    /// `MaxSessionsPerUser`, and its value.
    User(NonZero<u32>),
    /// `MaxSessionsPerHost`, and its value.
    Host(NonZero<u32>),
}

/// Why a session did not begin: its user or its host has as many sessions as it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct OverLimit {
    /// The limit.
    pub limit: IdentityLimit,
    /// The user name or the number of the host, escaped, if the log may name it (`LogPeerIdentity`).
    name: Option<String>,
}

impl OverLimit {
    /// Says of a session with these peers which limit it would exceed. They are named only if the log may name them.
    pub fn new(limit: IdentityLimit, identity: &PeerIdentity, is_identity_logged: bool) -> Self {
        let name = || match limit {
            IdentityLimit::User(_) => format!("\"{}\"", escape_line(identity.client_user_name())),
            IdentityLimit::Host(_) => identity.host_id.to_string(),
        };
        Self { limit, name: is_identity_logged.then(name) }
    }
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whose, most, setting) = match self.limit {
            IdentityLimit::User(most) => ("user", most, "MaxSessionsPerUser"),
            IdentityLimit::Host(most) => ("host", most, "MaxSessionsPerHost"),
        };
        let name = self.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        write!(f, "its {whose}{name} has as many sessions as {setting} allows: {most}")
    }
}

/// How many sessions each user and each host has. What is not limited is not counted, and costs nothing.
#[derive(Debug, Default)]
pub(super) struct IdentityCounts {
    users: Option<LimitedCounts<Box<str>>>,
    hosts: Option<LimitedCounts<u64>>,
}

impl IdentityCounts {
    /// Changes the limits. `active` are the sessions at this moment; they are counted if they have not been so far.
    pub(super) fn set_limits<'a>(
        &mut self,
        limits: IdentityLimits,
        active: impl Iterator<Item = &'a PeerIdentity> + Clone,
    ) {
        let IdentityLimits { per_user, per_host } = limits;
        let users = active.clone().filter_map(user).map(Box::from);
        LimitedCounts::set_limit(&mut self.users, per_user, users);
        LimitedCounts::set_limit(&mut self.hosts, per_host, active.filter_map(host));
    }

    /// Returns the limit that one more session of these peers would exceed, if any.
    pub(super) fn find_exceeded(&self, identity: &PeerIdentity) -> Option<IdentityLimit> {
        let users = self.users.as_ref().zip(user(identity));
        let hosts = self.hosts.as_ref().zip(host(identity));
        let of_user = users.and_then(|(users, name)| users.reached(name));
        let of_host = || hosts.and_then(|(hosts, id)| hosts.reached(&id));
        of_user.map(IdentityLimit::User).or_else(|| of_host().map(IdentityLimit::Host))
    }

    /// Counts a session that has begun, or was adopted, even if it exceeds a limit.
    pub(super) fn add(&mut self, identity: &PeerIdentity) {
        if let Some((users, name)) = self.users.as_mut().zip(user(identity)) {
            users.add(name.into());
        }
        if let Some((hosts, id)) = self.hosts.as_mut().zip(host(identity)) {
            hosts.add(id);
        }
    }

    /// Counts a session that has ended.
    pub(super) fn remove(&mut self, identity: &PeerIdentity) {
        if let Some((users, name)) = self.users.as_mut().zip(user(identity)) {
            users.remove(name);
        }
        if let Some((hosts, id)) = self.hosts.as_mut().zip(host(identity)) {
            hosts.remove(&id);
        }
    }
}

/// Returns the user of a session, if the Router named one.
fn user(identity: &PeerIdentity) -> Option<&str> {
    Some(identity.client_user_name()).filter(|name| !name.is_empty())
}

/// Returns the host of a session, if the Router named one.
fn host(identity: &PeerIdentity) -> Option<u64> {
    Some(identity.host_id).filter(|id| *id != 0)
}

/// The number of sessions of each user, or of each host. An entry exists as long as it has sessions.
#[derive(Debug)]
struct LimitedCounts<K> {
    most: NonZero<u32>,
    sessions: HashMap<K, u32>,
}

impl<K: Hash + Eq> LimitedCounts<K> {
    /// Begins to count with all that are `active`, changes the limit, or stops counting.
    fn set_limit(
        counts: &mut Option<Self>,
        most: Option<NonZero<u32>>,
        active: impl Iterator<Item = K>,
    ) {
        match (counts.as_mut(), most) {
            (_, None) => *counts = None,
            (Some(counts), Some(most)) => counts.most = most,
            (None, Some(most)) => {
                let mut begun = Self { most, sessions: HashMap::new() };
                active.for_each(|key| begun.add(key));
                *counts = Some(begun);
            }
        }
    }

    /// Returns the limit if it is reached.
    fn reached<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<NonZero<u32>>
    where
        K: Borrow<Q>,
    {
        let sessions = self.sessions.get(key).copied().unwrap_or(0);
        (sessions >= self.most.get()).then_some(self.most)
    }

    fn add(&mut self, key: K) {
        *self.sessions.entry(key).or_default() += 1;
    }

    fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let Some(sessions) = self.sessions.get_mut(key) else { return };
        *sessions -= 1;
        if *sessions == 0 {
            self.sessions.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(per_user: u32, per_host: u32) -> IdentityLimits {
        IdentityLimits { per_user: NonZero::new(per_user), per_host: NonZero::new(per_host) }
    }

    fn identity(user: u8, host: u8) -> PeerIdentity {
        let name = ["", "anna", "boris", "ANNA"][usize::from(user)];
        PeerIdentity::new("192.0.2.1", name, "192.0.2.2", host.into())
    }

    fn counts(limits: IdentityLimits, active: &[PeerIdentity]) -> IdentityCounts {
        let mut counts = IdentityCounts::default();
        counts.set_limits(limits, active.iter());
        counts
    }

    #[test]
    fn message_names_the_limit_and_whose_it_is_only_if_the_log_may() {
        let three = NonZero::new(3).unwrap();
        let identity = PeerIdentity::new("", "an\u{1b}na", "", 7);
        let say = |limit, is_logged| OverLimit::new(limit, &identity, is_logged).to_string();
        assert_eq!(
            say(IdentityLimit::User(three), false),
            "its user has as many sessions as MaxSessionsPerUser allows: 3"
        );
        assert!(say(IdentityLimit::User(three), true).contains(r#"its user "an\u{1b}na" has as"#));
        assert!(say(IdentityLimit::Host(three), true).contains("its host 7 has as"));
        let hidden = OverLimit::new(IdentityLimit::User(three), &identity, false);
        assert!(!format!("{hidden:?}").contains("an"), "{hidden:?}");
    }

    #[test]
    fn nobody_in_particular_is_not_limited() {
        let unknown = identity(0, 0);
        let counts = counts(limits(1, 1), &[unknown.clone(), unknown.clone()]);
        assert_eq!(counts.find_exceeded(&unknown), None);
        assert!(counts.users.unwrap().sessions.is_empty());
    }

    #[test]
    fn what_is_not_limited_is_not_counted() {
        let mut counts = counts(limits(0, 0), &[identity(1, 1)]);
        counts.add(&identity(1, 1));
        assert!(counts.users.is_none() && counts.hosts.is_none());
        assert_eq!(counts.find_exceeded(&identity(1, 1)), None);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Begin { user: u8, host: u8 },
        Adopt { user: u8, host: u8 },
        End { index: usize },
        Limits { per_user: u32, per_host: u32 },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0u8..4, 0u8..4).prop_map(|(user, host)| Event::Begin { user, host }),
            1 => (0u8..4, 0u8..4).prop_map(|(user, host)| Event::Adopt { user, host }),
            4 => any::<usize>().prop_map(|index| Event::End { index }),
            1 => (0u32..4, 0u32..4)
                .prop_map(|(per_user, per_host)| Event::Limits { per_user, per_host }),
        ]
    }

    proptest! {
        /// Sessions begin, are adopted and end, and limits change, in any order: a session is refused if and only if a count
        /// of the active sessions says so, and nothing is left when all have ended.
        #[test]
        fn limits_are_exact_in_any_order_of_events(events in prop::collection::vec(event(), 1..200)) {
            let mut counts = IdentityCounts::default();
            let mut in_force = IdentityLimits::default();
            let mut active: Vec<PeerIdentity> = Vec::new();
            for event in events {
                match event {
                    Event::Begin { user, host } => {
                        let new = identity(user, host);
                        let of_user = active
                            .iter()
                            .filter(|one| one.client_user_name() == new.client_user_name());
                        let of_host = active.iter().filter(|one| one.host_id == new.host_id);
                        let is_reached = |limit: Option<NonZero<u32>>, is_known, count: usize| {
                            limit.filter(|most| is_known && count >= most.get() as usize)
                        };
                        let per_user = is_reached(in_force.per_user, user != 0, of_user.count());
                        let per_host = is_reached(in_force.per_host, host != 0, of_host.count());
                        let expected = per_user
                            .map(IdentityLimit::User)
                            .or(per_host.map(IdentityLimit::Host));
                        prop_assert_eq!(counts.find_exceeded(&new), expected);
                        if expected.is_none() {
                            counts.add(&new);
                            active.push(new);
                        }
                    }
                    Event::Adopt { user, host } => {
                        counts.add(&identity(user, host));
                        active.push(identity(user, host));
                    }
                    Event::End { index } if !active.is_empty() => {
                        let ended = active.swap_remove(index % active.len());
                        counts.remove(&ended);
                    }
                    Event::End { .. } => {}
                    Event::Limits { per_user, per_host } => {
                        in_force = limits(per_user, per_host);
                        counts.set_limits(in_force, active.iter());
                    }
                }
            }
            active.iter().for_each(|ended| counts.remove(ended));
            prop_assert!(counts.users.is_none_or(|users| users.sessions.is_empty()));
            prop_assert!(counts.hosts.is_none_or(|hosts| hosts.sessions.is_empty()));
        }
    }
}
