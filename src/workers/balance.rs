//! On which thread sessions are to be: what is decided, without the threads.

/// A thread with less than this load gets new sessions, in thousandths.
const HAS_TIME: u32 = 500;
/// A thread with more gives some of its sessions away: beyond it, messages begin to wait for each other.
const TOO_BUSY: f64 = 0.85;
/// Threads that have no more than this together become one. Well below the half of what makes two of one: sessions
/// do not go to and fro.
const ONE_IS_ENOUGH: f64 = 0.6;
/// Threads are not evened out for less than this.
const WORTH_IT: f64 = 0.2;
/// How much of what was busier before is forgotten in each period, where it is about putting threads together. With
/// five periods a second it takes some seconds of quiet.
const FORGETTING: f64 = 0.1;

/// Where a new session goes among threads with these loads (in thousandths) and numbers of sessions.
pub(super) fn place(threads: impl Iterator<Item = (u32, usize)>) -> usize {
    let mut least = None;
    for (number, (load, sessions)) in threads.enumerate() {
        if load < HAS_TIME {
            return number;
        }
        // Tenths: of threads that are equally busy, the one with fewer sessions.
        let rank = (load / 100, sessions);
        if least.is_none_or(|(best, _)| rank < best) {
            least = Some((rank, number));
        }
    }
    least.map_or(0, |(_, number)| number)
}

/// Whether a session with such an `effort` is to move where such a `surplus` is: when both threads are more alike
/// after it, and by far. A session that is alone with all the work stays where it is, since the other thread would be
/// no better off.
pub(super) fn is_to_move(effort: i64, surplus: i64) -> bool {
    surplus > 0 && effort <= surplus.saturating_add(surplus / 2)
}

/// What is to move from a thread: a share of a thread's time, and where to.
pub(super) type Move = Option<(f64, usize)>;

/// Decides in each period what is to move.
#[derive(Debug)]
pub(super) struct Balance {
    /// The load of each thread, that goes up at once and down slowly.
    slow: Vec<f64>,
}

impl Balance {
    pub(super) fn new(threads: usize) -> Self {
        // As if all had been busy: nothing is put together before it is known.
        Self { slow: vec![1.0; threads] }
    }

    /// What each thread is to give away, by their loads (0 to 1) in the last period.
    pub(super) fn moves(&mut self, loads: &[f64]) -> Vec<Move> {
        for (slow, load) in self.slow.iter_mut().zip(loads) {
            *slow = load.max(*slow + (load - *slow) * FORGETTING);
        }
        let mut moves = vec![None; loads.len()];
        let by_load = |one: &(usize, &f64), other: &(usize, &f64)| one.1.total_cmp(other.1);
        let busiest = loads.iter().enumerate().max_by(by_load);
        let quietest = loads.iter().enumerate().min_by(by_load);
        if let (Some((from, most)), Some((to, least))) = (busiest, quietest)
            && *most > TOO_BUSY
        {
            if most - least > WORTH_IT {
                moves[from] = Some(((most - least) / 2.0, to));
            }
            return moves;
        }
        let mut together = self.slow.clone();
        for from in (1..loads.len()).rev() {
            let fits = |to: &usize| together[*to] + together[from] <= ONE_IS_ENOUGH;
            if let Some(to) = (0..from).find(fits) {
                together[to] += together[from];
                // All that it has.
                moves[from] = Some((f64::INFINITY, to));
            }
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_session_goes_to_the_first_that_has_time() {
        assert_eq!(place([(499, 900), (0, 0)].into_iter()), 0);
        assert_eq!(place([(500, 1), (400, 900)].into_iter()), 1);
        // Where none has: to the one with the most.
        assert_eq!(place([(950, 1), (700, 5), (990, 0)].into_iter()), 1);
        assert_eq!(place([(950, 3), (990, 2), (980, 2)].into_iter()), 1);
        assert_eq!(place(std::iter::empty()), 0);
    }

    #[test]
    fn one_that_is_too_busy_gives_half_of_what_it_has_more() {
        let mut balance = Balance::new(3);
        assert_eq!(balance.moves(&[0.9, 0.4, 0.2]), [Some((0.35, 2)), None, None]);
        // Both are: nothing is won.
        assert_eq!(balance.moves(&[1.0, 0.95, 0.9]), [None, None, None]);
        assert_eq!(balance.moves(&[0.84, 0.0, 0.0])[0], None);
    }

    #[test]
    fn threads_with_little_to_do_become_one_after_a_while() {
        let mut balance = Balance::new(3);
        assert_eq!(balance.moves(&[0.2, 0.1, 0.25]), [None, None, None]);
        let mut periods = 1;
        while balance.moves(&[0.2, 0.1, 0.25]).iter().all(Option::is_none) {
            periods += 1;
            assert!(periods < 50);
        }
        // Some seconds.
        assert!(periods > 10, "{periods}");
        for _ in 0..50 {
            balance.moves(&[0.2, 0.1, 0.25]);
        }
        let all = f64::INFINITY;
        assert_eq!(balance.moves(&[0.2, 0.1, 0.25]), [None, Some((all, 0)), Some((all, 0))]);
        // All together are more than one takes.
        assert_eq!(balance.moves(&[0.5, 0.3, 0.05]), [None, None, Some((all, 1))]);
        // A single peak is remembered.
        balance.moves(&[0.0, 0.8, 0.0]);
        assert_eq!(balance.moves(&[0.0, 0.0, 0.0])[1], None);
    }

    #[test]
    fn what_was_divided_is_not_put_together_again_and_again() {
        let mut balance = Balance::new(2);
        let moves = balance.moves(&[0.86, 0.0]);
        assert_eq!(moves, [Some((0.43, 1)), None]);
        for _ in 0..100 {
            // Two cost more than one.
            assert_eq!(balance.moves(&[0.47, 0.47]), [None, None]);
        }
    }

    #[test]
    fn a_session_moves_where_that_evens_out() {
        let second = 1_000_000_000;
        // Alone with all the work of a thread: the surplus is half of it.
        assert!(!is_to_move(second, second / 2));
        // One of two, one of four.
        assert!(is_to_move(second / 2, second / 2));
        assert!(is_to_move(second / 4, second / 2));
        assert!(!is_to_move(1, 0));
        assert!(!is_to_move(1, -5));
        assert!(is_to_move(second, i64::MAX));
    }
}
