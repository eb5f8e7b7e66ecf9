//! How many keys to keep on offer, given what the machine has left: a pure function of both.
//!
//! A Router gives each new session to the relay with the most keys in its pool, so the number on offer is the weight of a
//! relay among others. [`OfferPlan`] makes it follow the headroom: relays with the same limits and the same share of their
//! machine left offer the same number of keys, whatever the machines can carry.
//!
//! - **It shifts load and never refuses.** While places are free, a floor stays on offer, so that a relay without others
//!   serves all that come.
//! - **Keys cannot be withdrawn**, so a lower target only stops the topping up, and a higher one tops up at once. Keys beyond
//!   the target disappear as the Router uses them. Therefore no more than [`MOST`] keys are offered: a relay that had offered
//!   1 000 while it was idle would be sent 1 000 sessions, whatever they do to it. The share of them that follows the headroom
//!   is 75 keys: a relay that was idle and becomes busy is ahead of the others for that many sessions at most, and one key is
//!   1.3 % of a machine. On every machine that can carry more than 75 sessions, the target falls by less than the one key that
//!   a session uses, so it is followed exactly.
//! - **A new session counts at once.** The load is averaged over seconds, and in these seconds a busy Router gives out a
//!   thousand sessions. If they all went to the relay that was ahead at the last measurement, that relay would be the one
//!   behind at the next, and the relays would take turns for ever. So each session since the measurement lowers the target by
//!   what an average session costs.
//!
//! There is no other hysteresis: a short dip of the headroom withdraws nothing and is over before it matters, and a short peak
//! is averaged away.

/// This many keys stay on offer while places are free, enough for a burst of peers within the time in which used keys are
/// replaced.
const MIN_FLOOR: usize = 8;
/// The floor is at least this share of the capacity.
const FLOOR_SHARE: f64 = 0.05;
/// The maximum number of keys on offer. It is the same for all relays with a capacity of at least this, so that these offer the
/// same number with the same headroom, whatever their `MaxPeerCount`.
pub const MOST: usize = 125;
/// The share of [`MOST`] that is offered without any headroom. It is no less than the floor of a relay with 1 000 places, so
/// that relays with little headroom still differ from each other.
const BASE_SHARE: f64 = 0.4;

/// How the capacity of the relay is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// `MaxPeerCount`.
    pub capacity: usize,
    /// Active sessions, and keys that were handed out and will become sessions.
    pub used: usize,
}

impl Places {
    /// Returns the number of free places.
    pub fn free(self) -> usize {
        self.capacity.saturating_sub(self.used)
    }
}

/// What the machine has left, as it was measured with a number of sessions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfferPlan {
    /// What is left of the scarcest resource, from 0 to 1.
    pub headroom: f64,
    /// [`Places::used`] at that time.
    pub used: usize,
    /// What one more session takes of the headroom; never negative.
    pub session_cost: f64,
}

impl OfferPlan {
    /// Returns how many keys to keep on offer if the Router takes `max_on_offer` at most: never more than the free places or
    /// than `max_on_offer`, never less than [`floor`], and never less with more headroom.
    pub fn target(&self, places: Places, max_on_offer: usize) -> usize {
        let free = places.free();
        // Places count like any other resource.
        let headroom = self.headroom_with(places.used).min(ratio(free, places.capacity));
        let most = places.capacity.min(max_on_offer).min(MOST);
        let wanted = scale(most, BASE_SHARE + (1.0 - BASE_SHARE) * headroom);
        wanted.max(floor(places)).min(free).min(max_on_offer)
    }

    /// Returns the headroom that is expected with this many sessions, from 0 to 1.
    fn headroom_with(&self, used: usize) -> f64 {
        let difference = to_f64(used) - to_f64(self.used);
        let expected = self.headroom - self.session_cost * difference;
        // Something that cannot be computed is no reason to send peers elsewhere.
        if expected.is_nan() { 1.0 } else { expected.clamp(0.0, 1.0) }
    }
}

/// Returns how many keys stay on offer however little headroom there is: 8, or 5 % of the capacity if that is more, but no more
/// than the free places. Of a capacity above 1 000 no more counts, because the floor must stay below what relays with headroom
/// offer.
pub fn floor(places: Places) -> usize {
    let of_capacity = scale(places.capacity, FLOOR_SHARE).min(scale(MOST, BASE_SHARE));
    of_capacity.max(MIN_FLOOR).min(places.free())
}

#[expect(clippy::cast_precision_loss, reason = "numbers of sessions are far below 2^52")]
fn to_f64(number: usize) -> f64 {
    number as f64
}

/// Returns which part of the whole this is; 0 of nothing.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { to_f64(part) / to_f64(whole) }
}

/// Returns this share (0 to 1) of a number, rounded to the nearest integer.
fn scale(number: usize, share: f64) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a usize is one"
    )]
    let scaled = (to_f64(number) * share).round() as usize;
    scaled.min(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan(headroom: f64) -> OfferPlan {
        OfferPlan { headroom, used: 0, session_cost: 0.0 }
    }

    fn places() -> impl Strategy<Value = Places> {
        (1usize..100_000, 0.0..1.2).prop_map(|(capacity, share)| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test")]
            let used = (to_f64(capacity) * share) as usize;
            Places { capacity, used }
        })
    }

    fn any_plan() -> impl Strategy<Value = OfferPlan> {
        (-0.5..1.5, 0usize..100_000, 0.0..0.1)
            .prop_map(|(headroom, used, session_cost)| OfferPlan { headroom, used, session_cost })
    }

    /// 1 000 for a 3.0 Router, no limit for a 2.x Router.
    fn max_on_offer() -> impl Strategy<Value = usize> {
        prop_oneof![Just(1000), Just(usize::MAX), 1usize..2000]
    }

    proptest! {
        #[test]
        fn target_is_between_the_floor_and_the_free_places(
            plan in any_plan(), places in places(), max in max_on_offer(),
        ) {
            let target = plan.target(places, max);
            prop_assert!(target <= places.free() && target <= max, "{}", target);
            let floor = (places.capacity / 20).clamp(8, 50).min(places.free()).min(max);
            prop_assert!(target >= floor, "{} {}", target, floor);
            prop_assert!(floor <= super::floor(places));
            prop_assert!(places.free() == 0 || target > 0);
        }

        #[test]
        fn more_headroom_never_offers_fewer_keys(
            plan in any_plan(), more in 0.0..1.0, places in places(), max in max_on_offer(),
        ) {
            let richer = OfferPlan { headroom: plan.headroom + more, ..plan };
            prop_assert!(richer.target(places, max) >= plan.target(places, max));
        }

        #[test]
        fn more_sessions_never_offer_more_keys(
            plan in any_plan(), places in places(), more in 1usize..100, max in max_on_offer(),
        ) {
            let busier = Places { used: places.used + more, ..places };
            prop_assert!(plan.target(busier, max) <= plan.target(places, max));
        }

        #[test]
        fn capacity_and_limit_do_not_matter_beyond_the_most_that_is_offered(
            headroom in 0.0..1.0, capacity in MOST..100_000, max in MOST..2000,
        ) {
            let target = |capacity, max| plan(headroom).target(Places { capacity, used: 0 }, max);
            prop_assert_eq!(target(capacity, max), target(MOST, usize::MAX));
        }
    }

    #[test]
    fn target_follows_the_headroom() {
        let target = |capacity, left| plan(left).target(Places { capacity, used: 0 }, 1000);
        assert_eq!(
            [1.0, 0.5, 0.1, 0.0, -1.0].map(|left| target(1000, left)),
            [125, 88, 58, 50, 50]
        );
        assert_eq!([1.0, 0.5, 0.1, 0.0].map(|left| target(100, left)), [100, 70, 46, 40]);
        assert_eq!([1.0, 0.5, 0.1, 0.0].map(|left| target(10, left)), [10, 8, 8, 8]);
        assert_eq!(target(1000, f64::NAN), 125);
        // Little is free.
        let used = |used| plan(0.0).target(Places { capacity: 100, used }, 1000);
        assert_eq!([0, 90, 99, 100, 101].map(used), [40, 10, 1, 0, 0]);
    }

    #[test]
    fn sessions_since_the_measurement_lower_the_target_at_once() {
        let plan = OfferPlan { headroom: 0.5, used: 100, session_cost: 0.002 };
        let target = |used| plan.target(Places { capacity: 1000, used }, usize::MAX);
        assert_eq!([100, 105, 150, 400].map(target), [88, 87, 80, 50]);
        // Sessions that ended raise it.
        assert_eq!(target(50), 95);
    }

    #[test]
    fn places_count_like_any_resource() {
        let target = |used| plan(0.9).target(Places { capacity: 4000, used }, 1000);
        assert_eq!([0, 400, 2000, 3000, 3990].map(target), [118, 118, 88, 69, 10]);
    }
}
