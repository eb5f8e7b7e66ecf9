//! Decides on which thread sessions run, from the loads of the threads alone. Loads are in thousandths.

/// A thread with less load than this gets new sessions.
const MAX_LOAD_FOR_NEW: u32 = 500;
/// A thread with more load than this gives away some of its sessions: beyond it, messages begin to wait for each other.
const OVERLOAD: u32 = 850;
/// Threads whose loads add up to no more than this are merged. Well below [`OVERLOAD`], where a thread is split, so that
/// sessions do not move back and forth.
const MAX_MERGED_LOAD: u32 = 600;
/// A smaller difference between two threads is not evened out.
const MIN_IMBALANCE: u32 = 200;
/// In each period, the distance of a peak from the current load shrinks by one part in this many: with five periods a second,
/// threads are merged after a few seconds of quiet.
const DECAY_DIVISOR: u32 = 10;

/// Chooses the thread for a new session, given the loads and the numbers of sessions of all threads.
pub(super) fn choose_thread(threads: impl Iterator<Item = (u32, usize)>) -> usize {
    let mut least = None;
    for (number, (load, sessions)) in threads.enumerate() {
        if load < MAX_LOAD_FOR_NEW {
            return number;
        }
        // In tenths, so that among equally busy threads the one with fewer sessions is chosen.
        let rank = (load / 100, sessions);
        if least.is_none_or(|(best, _)| rank < best) {
            least = Some((rank, number));
        }
    }
    least.map_or(0, |(_, number)| number)
}

/// Whether a session of this `effort` should move away from a thread with this `surplus`, which it should if that clearly
/// evens out the loads. A session that does all the work of its thread stays, since the other thread would only be overloaded
/// instead.
pub(super) fn should_move(effort: i64, surplus: i64) -> bool {
    surplus > 0 && effort <= surplus.saturating_add(surplus / 2)
}

/// What a thread should give away, if anything: an amount of load in thousandths, and the thread that gets it.
pub(super) type LoadMove = Option<(u32, usize)>;

/// An amount of load that stands for all sessions of a thread.
pub(super) const ALL_SESSIONS: u32 = u32::MAX;

/// Decides in each period which load moves.
#[derive(Debug)]
pub(super) struct Balancer {
    /// The load of each thread, which rises at once and falls slowly.
    peaks: Vec<u32>,
}

impl Balancer {
    pub(super) fn new(threads: usize) -> Self {
        // All threads count as busy at first, so that none are merged before their loads are known.
        Self { peaks: vec![1000; threads] }
    }

    /// Plans what each thread should give away, given the loads in the last period.
    pub(super) fn plan_moves(&mut self, loads: &[u32]) -> Vec<LoadMove> {
        for (peak, load) in self.peaks.iter_mut().zip(loads) {
            *peak = (*load).max(*peak - peak.saturating_sub(*load).div_ceil(DECAY_DIVISOR));
        }
        let mut moves = vec![None; loads.len()];
        let busiest = loads.iter().enumerate().max_by_key(|(_, load)| **load);
        let quietest = loads.iter().enumerate().min_by_key(|(_, load)| **load);
        if let (Some((from, most)), Some((to, least))) = (busiest, quietest)
            && *most > OVERLOAD
        {
            if most - least > MIN_IMBALANCE {
                moves[from] = Some(((most - least) / 2, to));
            }
            return moves;
        }
        let mut merged = self.peaks.clone();
        for from in (1..loads.len()).rev() {
            let fits = |to: &usize| merged[*to] + merged[from] <= MAX_MERGED_LOAD;
            if let Some(to) = (0..from).find(fits) {
                merged[to] += merged[from];
                moves[from] = Some((ALL_SESSIONS, to));
            }
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_session_goes_to_the_first_thread_with_little_load() {
        assert_eq!(choose_thread([(499, 900), (0, 0)].into_iter()), 0);
        assert_eq!(choose_thread([(500, 1), (400, 900)].into_iter()), 1);
        // If all threads are busy, it goes to the least busy one.
        assert_eq!(choose_thread([(950, 1), (700, 5), (990, 0)].into_iter()), 1);
        assert_eq!(choose_thread([(950, 3), (990, 2), (980, 2)].into_iter()), 1);
        assert_eq!(choose_thread(std::iter::empty()), 0);
    }

    #[test]
    fn overloaded_thread_gives_away_half_of_the_difference() {
        let mut balancer = Balancer::new(3);
        assert_eq!(balancer.plan_moves(&[900, 400, 200]), [Some((350, 2)), None, None]);
        // When all are overloaded, moving gains nothing.
        assert_eq!(balancer.plan_moves(&[1000, 950, 900]), [None, None, None]);
        assert_eq!(balancer.plan_moves(&[840, 0, 0])[0], None);
    }

    #[test]
    fn quiet_threads_are_merged_after_a_while() {
        let mut balancer = Balancer::new(3);
        assert_eq!(balancer.plan_moves(&[200, 100, 250]), [None, None, None]);
        let mut periods = 1;
        while balancer.plan_moves(&[200, 100, 250]).iter().all(Option::is_none) {
            periods += 1;
            assert!(periods < 50);
        }
        // It takes a few seconds.
        assert!(periods > 10, "{periods}");
        for _ in 0..50 {
            balancer.plan_moves(&[200, 100, 250]);
        }
        assert_eq!(
            balancer.plan_moves(&[200, 100, 250]),
            [None, Some((ALL_SESSIONS, 0)), Some((ALL_SESSIONS, 0))]
        );
        // Their loads together are too much for one thread.
        assert_eq!(balancer.plan_moves(&[500, 300, 50]), [None, None, Some((ALL_SESSIONS, 1))]);
        // A single peak is remembered.
        balancer.plan_moves(&[0, 800, 0]);
        assert_eq!(balancer.plan_moves(&[0, 0, 0])[1], None);
    }

    #[test]
    fn split_thread_is_not_merged_again() {
        let mut balancer = Balancer::new(2);
        let moves = balancer.plan_moves(&[860, 0]);
        assert_eq!(moves, [Some((430, 1)), None]);
        for _ in 0..100 {
            // Two threads cost more than one.
            assert_eq!(balancer.plan_moves(&[470, 470]), [None, None]);
        }
    }

    #[test]
    fn session_moves_only_when_that_evens_out_the_load() {
        let second = 1_000_000_000;
        // The session does all the work of a thread, and the surplus is half of that.
        assert!(!should_move(second, second / 2));
        // One of two sessions, and one of four.
        assert!(should_move(second / 2, second / 2));
        assert!(should_move(second / 4, second / 2));
        assert!(!should_move(1, 0));
        assert!(!should_move(1, -5));
        assert!(should_move(second, i64::MAX));
    }
}
