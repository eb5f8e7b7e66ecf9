//! What a worker thread, its sessions and the balancer share.

#[path = "../../../src/workers/balance.rs"]
#[allow(dead_code, reason = "the balancer itself is not part of a model")]
mod balance;
#[path = "../../../src/workers/busy.rs"]
mod busy;
#[path = "../../../src/workers/plan.rs"]
mod plan;
#[path = "../../../src/workers/slot.rs"]
mod slot;

use std::sync::Arc;
use std::time::Duration;

use loom::sync::atomic::Ordering;
use loom::thread;

use busy::BusyMeter;
use plan::{MovePlan, SharedPlan};
use slot::{WorkerSlot, WorkerState};

crate::models! {
    idle_time_is_counted_once,
    no_work_that_moves_is_forgotten,
    ;
    plan_is_read_as_a_whole,
    sessions_that_move_are_counted_until_they_end,
}

/// A session works on the first thread until it moves, and then on the second.
fn sessions_that_move_are_counted_until_they_end() {
    let workers = [0, 1].map(|number| Arc::new(WorkerState::new(number)));
    let plan = MovePlan { surplus_us: MovePlan::EVERYTHING, to: 1, period: 1 };
    let balancer = {
        let worker = workers[0].clone();
        thread::spawn(move || {
            let sessions = worker.sessions.load(Ordering::Relaxed);
            assert!(sessions <= 2, "{sessions}");
            worker.plan.store(plan);
        })
    };
    let sessions = [0, 1].map(|_| {
        let [from, to] = workers.clone();
        thread::spawn(move || {
            let mut slot = WorkerSlot::new(from);
            let is_moving = slot.record_work(Duration::from_micros(5), true) == Some(1);
            if is_moving {
                // It is spawned on the new thread before it leaves the old one.
                let new = WorkerSlot::new(to);
                drop(std::mem::replace(&mut slot, new));
            }
            drop(slot);
            usize::from(is_moving)
        })
    });
    balancer.join().unwrap();
    let moved: usize = sessions.map(|session| session.join().unwrap()).iter().sum();
    for worker in &workers {
        assert_eq!(worker.sessions.load(Ordering::Relaxed), 0);
        assert_eq!(worker.busy.measure_load(Duration::from_secs(1)), 1000);
    }
    assert_eq!(workers[0].migrations.load(Ordering::Relaxed), moved);
    assert_eq!(workers[1].migrations.load(Ordering::Relaxed), 0);
    assert_eq!(workers[0].load.load(Ordering::Relaxed), 0);
}

fn plan_is_read_as_a_whole() {
    let shared = Arc::new(SharedPlan::default());
    let plans = [1, 2].map(|number: u16| MovePlan {
        surplus_us: i32::from(number) * 100,
        to: number,
        period: number,
    });
    let balancer = {
        let shared = shared.clone();
        thread::spawn(move || plans.into_iter().for_each(|plan| shared.store(plan)))
    };
    let mover = {
        let shared = shared.clone();
        thread::spawn(move || shared.reduce(30))
    };
    for _ in 0..2 {
        let MovePlan { surplus_us, to, period } = shared.load();
        assert_eq!(to, period);
        let full = i32::from(to) * 100;
        assert!([full, full - 30].contains(&surplus_us), "{surplus_us} to {to}");
    }
    balancer.join().unwrap();
    mover.join().unwrap();
}

fn no_work_that_moves_is_forgotten() {
    let shared = Arc::new(SharedPlan::default());
    shared.store(MovePlan { surplus_us: 100, to: 1, period: 1 });
    let movers = [10, 20].map(|micros| {
        let shared = shared.clone();
        thread::spawn(move || shared.reduce(micros))
    });
    for mover in movers {
        mover.join().unwrap();
    }
    assert_eq!(shared.load(), MovePlan { surplus_us: 70, to: 1, period: 1 });
}

/// A thread that parks twice, while its load is measured.
fn idle_time_is_counted_once() {
    let meter = Arc::new(BusyMeter::default());
    let period = Duration::from_secs(1);
    let worker = {
        let meter = meter.clone();
        thread::spawn(move || {
            for _ in 0..2 {
                meter.park();
                meter.unpark();
            }
        })
    };
    for _ in 0..2 {
        assert!(meter.measure_load(period) <= 1000);
    }
    worker.join().unwrap();
    // Whatever was missed or counted twice is put right in the next period, and the one after it is exact.
    let _ = meter.measure_load(period);
    assert_eq!(meter.measure_load(Duration::from_nanos(1)), 1000);
    meter.park();
    assert!(meter.measure_load(Duration::from_nanos(1)) <= 1000);
}
