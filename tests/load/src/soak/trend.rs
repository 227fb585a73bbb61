//! The slope of a series of samples, and how well it is known.
//!
//! Samples of a process a second apart say almost the same: memory goes up until a memtable is written and down after it. Taken as
//! independent they make any slope look significant. So they are first averaged over batches of about a minute, the line is
//! that of ordinary least squares through the batches, and what the batches still have in common is taken off their number:
//! with the correlation r of neighbouring residuals, n batches are worth n (1 - r) / (1 + r).

/// So many batches at least, where a run is shorter than that many minutes.
const FEWEST_BATCHES: f64 = 10.0;

/// A slope with its 95 % interval, per hour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// The slope.
    pub per_hour: f64,
    /// The interval reaches so far to both sides.
    pub margin: f64,
    /// Batches that it was taken from.
    pub batches: usize,
    /// What they are worth.
    pub effective_batches: f64,
}

impl Trend {
    /// Of values with the second at which each was seen; `None` where there are too few.
    pub fn of(samples: &[(f64, f64)]) -> Option<Trend> {
        let batches = batch_means(samples)?;
        let n = batches.len() as f64;
        let (x_mean, y_mean) = mean(&batches);
        let of_x: f64 = batches.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
        let slope = batches.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum::<f64>() / of_x;
        let residuals: Vec<f64> = batches.iter().map(|(x, y)| y - y_mean - slope * (x - x_mean)).collect();
        let of_residuals: f64 = residuals.iter().map(|residual| residual * residual).sum();
        let correlation = if of_residuals > 0.0 {
            // Negative correlation would make us surer than independent batches do.
            (residuals.iter().zip(residuals.iter().skip(1)).map(|(a, b)| a * b).sum::<f64>() / of_residuals).max(0.0)
        } else {
            0.0
        };
        let effective = n * (1.0 - correlation) / (1.0 + correlation);
        let freedom = (effective - 2.0).max(1.0);
        let error = (of_residuals / freedom / of_x).sqrt();
        let per_hour = 3_600.0;
        Some(Trend {
            per_hour: slope * per_hour,
            margin: student(freedom) * error * per_hour,
            batches: batches.len(),
            effective_batches: effective,
        })
    }

    /// The interval holds 0.
    pub fn may_be_zero(&self) -> bool {
        self.per_hour.abs() <= self.margin
    }
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    (points.iter().map(|(x, _)| x).sum::<f64>() / n, points.iter().map(|(_, y)| y).sum::<f64>() / n)
}

fn batch_means(samples: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    let (first, last) = (samples.first()?.0, samples.last()?.0);
    let seconds = 60.0_f64.min((last - first) / FEWEST_BATCHES);
    let batch = |(x, _): &(f64, f64)| ((x - first) / seconds).floor() as u64;
    let means: Vec<_> = samples.chunk_by(|a, b| batch(a) == batch(b)).map(mean).collect();
    (means.len() >= 4).then_some(means)
}

/// What 95 % of Student's distribution lie within, from the normal one by its expansion; exact to 1 % from 3 degrees of freedom on.
fn student(freedom: f64) -> f64 {
    1.960 + 2.372 / freedom + 2.823 / freedom.powi(2) + 2.556 / freedom.powi(3) + 1.587 / freedom.powi(4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// An hour of seconds.
    fn hour(mut value: impl FnMut(f64) -> f64) -> Vec<(f64, f64)> {
        (0..3_600).map(|second| (f64::from(second), value(f64::from(second)))).collect()
    }

    #[test]
    fn a_straight_line_has_its_slope() {
        let trend = Trend::of(&hour(|second| 100.0 + second * 7.0 / 3_600.0)).unwrap();
        assert!((trend.per_hour - 7.0).abs() < 1e-6 && trend.margin < 1e-6, "{trend:?}");
        assert_eq!(trend.batches, 60);
        assert!(!trend.may_be_zero());
    }

    #[test]
    fn what_only_swings_has_none() {
        let trend = Trend::of(&hour(|second| 100.0 + second % 420.0 / 10.0)).unwrap();
        assert!(trend.may_be_zero() && trend.effective_batches < 40.0, "{trend:?}");
    }

    #[test]
    fn the_interval_holds_the_slope_of_correlated_noise_as_often_as_it_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let held = (0..400).filter(|_| {
            let mut noise = 0.0;
            let trend = Trend::of(&hour(|second| {
                noise = noise * 0.98 + rng.random_range(-1.0..1.0);
                noise + second * 3.0 / 3_600.0
            }));
            let trend = trend.unwrap();
            (trend.per_hour - 3.0).abs() <= trend.margin
        });
        let held = held.count();
        assert!((360..=396).contains(&held), "{held} of 400");
    }

    #[test]
    fn student_is_as_in_the_tables() {
        for (freedom, quantile) in [(3.0, 3.182), (5.0, 2.571), (10.0, 2.228), (30.0, 2.042)] {
            assert!((student(freedom) / quantile - 1.0).abs() < 0.01, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn too_little_has_no_slope() {
        assert_eq!(Trend::of(&[]), None);
        assert_eq!(Trend::of(&[(0.0, 1.0), (1.0, 1.0)]), None);
    }
}
