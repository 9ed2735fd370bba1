//! Jobs that hold the rest up lose their bytes to others.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::super::item::{CRUMB, is_due};
use super::super::job::Job;
use super::super::pace::as_f64;
use super::{Plan, to_bytes};

/// What is split at the end of the list: more bytes than these, and more time than that.
const SPLIT_BYTES: u64 = 512 << 10;
const SPLIT_SECONDS: f64 = 0.3;
/// Silence after which a connection loses the rest of its segment while others receive; doubled each time that it
/// happens to the same item, because the server may need its time.
const SILENCE: Duration = Duration::from_secs(2);
const MOST_DOUBLINGS: u32 = 4;
/// The same while an answer has not begun, or nobody else receives anything.
const LONG_SILENCE: Duration = Duration::from_secs(6);
/// A connection is slow below this share of its siblings' median rate …
const SLOW_SHARE: f64 = 0.25;
/// … if there are so many of them, and it would need so long for its rest.
const SLOW_SIBLINGS: usize = 3;
const SLOW_SECONDS: f64 = 3.0;
/// A host gets its connections back one by one, after so long without trouble.
const RECOVERY: Duration = Duration::from_secs(2);
impl Plan {
    /// The latter part of the job that would take longest, where the idle worker's share of it begins.
    pub(super) fn split(&mut self, worker: usize, now: Instant) -> Option<(usize, Range<u64>)> {
        // A job too young to have a rate is soon over, or soon seen to be slow.
        let seconds = |j: &Job| j.rate(now).map_or(0.0, |rate| as_f64(j.rest()) / rate.max(1.0));
        let may_be_split = |j: &&Job| {
            let item = &self.items[j.item];
            !item.is_whole()
                && self.hosts[item.host].ranges == Some(true)
                && j.rest() >= SPLIT_BYTES
                && seconds(j) > SPLIT_SECONDS
                && self.has_room(item.host, now)
                && is_due(item.budget.not_before, now)
        };
        let victim = self.live().filter(may_be_split).max_by(|a, b| seconds(a).total_cmp(&seconds(b)))?;
        let theirs = victim.rate(now)?.max(1.0);
        let mine = self.rates[worker].or_else(|| self.mean_rate()).unwrap_or(theirs).max(1.0);
        // Both shall end at the same time; a victim that hardly moves loses hardly less than everything.
        let given = to_bytes(as_f64(victim.rest()) * mine / (mine + theirs)).clamp(CRUMB, victim.rest());
        let (ticket, item) = (victim.ticket, victim.item);
        let victim = self.jobs.iter_mut().flatten().find(|j| j.ticket == ticket)?;
        let range = victim.end - given..victim.end;
        victim.end = range.start;
        self.counts.stolen += 1;
        Some((item, range))
    }

    /// Looks after connections that hold the rest up, and after hosts that have recovered.
    pub(in super::super) fn look_after(&mut self, now: Instant) {
        for worker in 0..self.jobs.len() {
            if self.is_silent(worker, now) || self.is_slow(worker, now) {
                self.take_away(worker);
            }
        }
        for host in &mut self.hosts {
            if host.limit < self.per_host && host.trouble.is_some_and(|at| now >= at + RECOVERY) {
                host.limit += 1;
                host.trouble = Some(now);
            }
        }
        // Waits end without anybody's doing.
        self.effects.work = true;
    }

    fn take_away(&mut self, worker: usize) {
        let Some(job) = self.jobs[worker].as_mut() else { return };
        let rest = job.claimed..job.end;
        job.end = job.claimed;
        job.is_taken_away = true;
        let item = &mut self.items[job.item];
        item.losses += 1;
        item.give_back(rest);
        self.counts.stolen += 1;
        self.effects.lost.push(worker);
    }

    /// A job whose rest another connection can fetch.
    fn movable(&self, worker: usize) -> Option<&Job> {
        let job = self.jobs[worker].as_ref()?;
        let item = &self.items[job.item];
        let is_movable = self.is_live(job)
            && !job.is_taken_away
            && !item.is_whole()
            && !item.place.is_opening()
            && self.hosts[item.host].ranges != Some(false)
            && job.rest() > 0;
        is_movable.then_some(job)
    }

    fn is_silent(&self, worker: usize, now: Instant) -> bool {
        let Some(job) = self.movable(worker) else { return false };
        let others_receive = self.heard.is_some_and(|at| now.saturating_duration_since(at) < SILENCE / 2);
        let patience = if job.has_begun && others_receive { SILENCE } else { LONG_SILENCE };
        now.saturating_duration_since(job.heard) >= self.doubled(patience, job)
    }

    /// More patience with an item that has lost connections already.
    fn doubled(&self, patience: Duration, job: &Job) -> Duration {
        patience * 2_u32.pow(self.items[job.item].losses.min(MOST_DOUBLINGS))
    }

    fn is_slow(&self, worker: usize, now: Instant) -> bool {
        let Some(job) = self.movable(worker) else { return false };
        let is_old = now.saturating_duration_since(job.began) >= self.doubled(SILENCE, job);
        let Some(rate) = job.rate(now).filter(|_| is_old) else { return false };
        let host = self.items[job.item].host;
        let is_sibling =
            |j: &&Job| j.ticket != job.ticket && !j.is_taken_away && self.items[j.item].host == host;
        // Those that have no job left at the end of the list say by their last one what the host can do.
        let busy = self.jobs.iter().flatten().filter(is_sibling).filter_map(|j| j.rate(now));
        let idle = self.jobs.iter().zip(&self.rates).filter(|(j, _)| j.is_none()).filter_map(|(_, r)| *r);
        let mut rates: Vec<f64> = busy.chain(idle).collect();
        if rates.len() < SLOW_SIBLINGS {
            return false;
        }
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        rate < median * SLOW_SHARE && as_f64(job.rest()) > rate * SLOW_SECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Simulation;
    use super::*;

    const MB: u64 = 1 << 20;

    /// Workers at jobs of one large item; `rates` in bytes per 100 ms, for so many times.
    fn run(s: &mut Simulation, orders: &[super::super::Order], rates: &[u64], times: u64) {
        for _ in 0..times {
            s.pass(100);
            for (worker, (order, rate)) in orders.iter().zip(rates).enumerate() {
                if *rate > 0 {
                    s.receive(worker, order, *rate);
                }
            }
            s.plan.look_after(s.now);
        }
    }

    fn started(workers: usize) -> (Simulation, Vec<super::super::Order>) {
        let mut s = Simulation::new(&[1000 * MB], workers + 1);
        let orders = (0..workers).map(|worker| s.begin(worker)).collect();
        s.plan.effects();
        (s, orders)
    }

    #[test]
    fn a_silent_job_loses_its_rest_and_others_get_it_first() {
        let (mut s, orders) = started(3);
        run(&mut s, &orders, &[1000, 1000, 1000], 1);
        run(&mut s, &orders, &[1000, 0, 1000], 19);
        assert!(s.plan.effects().lost.is_empty());
        run(&mut s, &orders, &[1000, 0, 1000], 1);
        assert_eq!(s.plan.effects().lost, [1]);
        assert!(s.receive(1, &orders[1], 1).is_none());
        let heir = s.take(3).unwrap();
        let range = &orders[1].asked.range;
        assert_eq!(heir.asked.range, range.start + 1000..range.end);
        // The server may need its time: the next one is given more.
        s.answer(3, &heir);
        run(&mut s, &orders, &[1000, 0, 1000], 39);
        assert!(s.plan.effects().lost.is_empty());
        run(&mut s, &orders, &[1000, 0, 1000], 1);
        assert_eq!(s.plan.effects().lost, [3]);
    }

    #[test]
    fn where_all_are_silent_the_network_is_given_more_time() {
        let (mut s, orders) = started(3);
        run(&mut s, &orders, &[1000, 1000, 1000], 5);
        run(&mut s, &orders, &[0, 0, 0], 59);
        assert!(s.plan.effects().lost.is_empty());
        run(&mut s, &orders, &[0, 0, 0], 1);
        assert!(!s.plan.effects().lost.is_empty());
    }

    #[test]
    fn a_job_far_slower_than_its_siblings_loses_its_rest() {
        let (mut s, orders) = started(4);
        run(&mut s, &orders, &[40_000, 9_000, 40_000, 40_000], 25);
        assert_eq!(s.plan.effects().lost, [1]);
        let (mut s, orders) = started(4);
        run(&mut s, &orders, &[40_000, 12_000, 40_000, 40_000], 15);
        assert!(s.plan.effects().lost.is_empty(), "slower, but not far slower");
        let (mut s, orders) = started(4);
        run(&mut s, &orders, &[4000, 4000, 4000, 4000], 25);
        assert!(s.plan.effects().lost.is_empty(), "all are slow: so is the link");
    }

    #[test]
    fn what_is_left_is_shared_so_that_both_end_together() {
        let mut s = Simulation::new(&[10 * MB], 3);
        s.plan.allow(1);
        let order = s.begin(0);
        s.finish(0, &order);
        // Nothing else is left to give out.
        s.plan.items[0].next = 10 * MB;
        s.plan.items[0].give_back(2 * MB..10 * MB);
        s.plan.rates = vec![Some(as_f64(8 * MB)), Some(3e5), None];
        let victim = s.begin(0);
        let rest = victim.asked.range.end - victim.asked.range.start;
        s.plan.items[0].gaps.clear();
        s.plan.allow(3);
        assert!(s.take(1).is_none(), "too young to be known as slow");
        s.pass(1000);
        s.receive(0, &victim, 100_000).unwrap();
        let thief = s.take(1).unwrap();
        let given = as_f64(thief.asked.range.end - thief.asked.range.start);
        let share = given / as_f64(rest - 100_000);
        assert!((0.74..0.76).contains(&share), "three times as fast, {share} of the rest");
        assert_eq!(thief.asked.range.end, victim.asked.range.end);
        assert_eq!(s.receive(0, &victim, 100 * MB), Some(rest - 100_000 - to_bytes(given)));
        assert!(!s.plan.is_more_than_asked(0, victim.ticket), "its connection has bytes of others");
    }

    #[test]
    fn a_host_recovers_step_by_step() {
        let mut s = Simulation::new(&[MB], 8);
        (s.plan.hosts[0].limit, s.plan.hosts[0].trouble) = (2, Some(s.now));
        for expected in [3, 4, 5, 6, 7, 8, 9, 9] {
            s.pass(1999);
            s.plan.look_after(s.now);
            s.pass(1);
            s.plan.look_after(s.now);
            assert_eq!(s.plan.hosts[0].limit, expected.min(8));
        }
    }
}
