//! On which thread sessions are to be: what is decided, without the threads. Loads are in thousandths.

/// A thread with less than this load gets new sessions.
const HAS_TIME: u32 = 500;
/// A thread with more gives some of its sessions away: beyond it, messages begin to wait for each other.
const TOO_BUSY: u32 = 850;
/// Threads that have no more than this together become one. Well below the half of what makes two of one: sessions
/// do not go to and fro.
const ONE_IS_ENOUGH: u32 = 600;
/// Threads are not evened out for less than this.
const WORTH_IT: u32 = 200;
/// Where it is about putting threads together, this part of what was busier before is forgotten in each period: with
/// five periods a second it takes some seconds of quiet.
const FORGETTING: u32 = 10;

/// Where a new session goes among threads with these loads and numbers of sessions.
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

/// What is to move from a thread: a share of a thread's time in thousandths, and where to.
pub(super) type Move = Option<(u32, usize)>;

/// All that a thread has.
pub(super) const ALL: u32 = u32::MAX;

/// Decides in each period what is to move.
#[derive(Debug)]
pub(super) struct Balance {
    /// The load of each thread, that goes up at once and down slowly.
    slow: Vec<u32>,
}

impl Balance {
    pub(super) fn new(threads: usize) -> Self {
        // As if all had been busy: nothing is put together before it is known.
        Self { slow: vec![1000; threads] }
    }

    /// What each thread is to give away, by their loads in the last period.
    pub(super) fn moves(&mut self, loads: &[u32]) -> Vec<Move> {
        for (slow, load) in self.slow.iter_mut().zip(loads) {
            *slow = (*load).max(*slow - slow.saturating_sub(*load).div_ceil(FORGETTING));
        }
        let mut moves = vec![None; loads.len()];
        let busiest = loads.iter().enumerate().max_by_key(|(_, load)| **load);
        let quietest = loads.iter().enumerate().min_by_key(|(_, load)| **load);
        if let (Some((from, most)), Some((to, least))) = (busiest, quietest)
            && *most > TOO_BUSY
        {
            if most - least > WORTH_IT {
                moves[from] = Some(((most - least) / 2, to));
            }
            return moves;
        }
        let mut together = self.slow.clone();
        for from in (1..loads.len()).rev() {
            let fits = |to: &usize| together[*to] + together[from] <= ONE_IS_ENOUGH;
            if let Some(to) = (0..from).find(fits) {
                together[to] += together[from];
                moves[from] = Some((ALL, to));
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
        assert_eq!(balance.moves(&[900, 400, 200]), [Some((350, 2)), None, None]);
        // Both are: nothing is won.
        assert_eq!(balance.moves(&[1000, 950, 900]), [None, None, None]);
        assert_eq!(balance.moves(&[840, 0, 0])[0], None);
    }

    #[test]
    fn threads_with_little_to_do_become_one_after_a_while() {
        let mut balance = Balance::new(3);
        assert_eq!(balance.moves(&[200, 100, 250]), [None, None, None]);
        let mut periods = 1;
        while balance.moves(&[200, 100, 250]).iter().all(Option::is_none) {
            periods += 1;
            assert!(periods < 50);
        }
        // Some seconds.
        assert!(periods > 10, "{periods}");
        for _ in 0..50 {
            balance.moves(&[200, 100, 250]);
        }
        assert_eq!(balance.moves(&[200, 100, 250]), [None, Some((ALL, 0)), Some((ALL, 0))]);
        // All together are more than one takes.
        assert_eq!(balance.moves(&[500, 300, 50]), [None, None, Some((ALL, 1))]);
        // A single peak is remembered.
        balance.moves(&[0, 800, 0]);
        assert_eq!(balance.moves(&[0, 0, 0])[1], None);
    }

    #[test]
    fn what_was_divided_is_not_put_together_again_and_again() {
        let mut balance = Balance::new(2);
        let moves = balance.moves(&[860, 0]);
        assert_eq!(moves, [Some((430, 1)), None]);
        for _ in 0..100 {
            // Two cost more than one.
            assert_eq!(balance.moves(&[470, 470]), [None, None]);
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
