//! The few statistics of a table: mean and spread over seeds, and two paired tests of an arm against its control.
//!
//! # Source
//! McNemar 1947 (exact form); Student's paired t test; the incomplete beta function by Lentz's continued fraction and the
//! gamma function by Lanczos' approximation, as in Press et al., Numerical Recipes, 6.1 and 6.4.

use serde::Serialize;

/// Mean and sample standard deviation of figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Number of figures.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// With `n - 1` below; `None` of a single figure.
    pub deviation: Option<f64>,
}

impl Spread {
    /// Of `figures`; `None` of none.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let n = figures.len();
        if n == 0 {
            return None;
        }
        let mean = figures.iter().sum::<f64>() / n as f64;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        Some(Self {
            n,
            mean,
            deviation: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
        })
    }
}

/// Two-sided p of the exact McNemar test: how likely so uneven a split is where gains and losses are equally likely.
///
/// `gained` are the pairs in which only the first is right, `lost` those in which only the second is. 1 of none.
pub fn mcnemar(gained: u64, lost: u64) -> f64 {
    let (less, n) = (gained.min(lost) as f64, (gained + lost) as f64);
    if 2.0 * less >= n {
        return 1.0;
    }
    // P(X <= less) of a fair binomial, as an incomplete beta function; doubled, as the split may be uneven either way.
    (2.0 * incomplete_beta(n - less, less + 1.0, 0.5)).min(1.0)
}

/// Two-sided p of Student's paired t test, of the differences of pairs; `None` of fewer than two.
///
/// Where all differences are the same there is no spread to judge by: 0, or 1 where they are all zero.
pub fn paired_t(differences: &[f64]) -> Option<f64> {
    let Spread { n, mean, deviation } = Spread::of(differences)?;
    let deviation = deviation?;
    if deviation == 0.0 {
        return Some(if mean == 0.0 { 1.0 } else { 0.0 });
    }
    let (t, freedom) = (mean / deviation * (n as f64).sqrt(), (n - 1) as f64);
    Some(incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t)))
}

/// The regularized incomplete beta function `I_x(a, b)`, for positive `a` and `b` and `x` within 0 to 1.
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    // The fraction converges fast below the mean only.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * continued_fraction(a, b, x) / a
    } else {
        1.0 - front * continued_fraction(b, a, 1.0 - x) / b
    }
}

fn continued_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    // Needs about sqrt(max(a, b)) terms: enough for 10^8 pairs.
    for m in 1..20_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut factor = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            factor = c * d;
            fraction *= factor;
        }
        if (factor - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction
}

/// Natural logarithm of the gamma function, for positive `x`.
fn ln_gamma(x: f64) -> f64 {
    const LANCZOS: [f64; 6] = [
        76.18009172947146,
        -86.50532032941677,
        24.01409824083091,
        -1.231739572450155,
        0.1208650973866179e-2,
        -0.5395239384953e-5,
    ];
    let series: f64 = (1..).zip(LANCZOS).map(|(i, c)| c / (x + f64::from(i))).sum();
    let t = x + 5.5;
    (x + 0.5) * t.ln() - t + (2.506_628_274_631_000_5 * (1.000_000_000_190_015 + series) / x).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-9), "{a} is not {b}");
    }

    #[test]
    fn spread_is_that_of_a_sample() {
        assert_eq!(Spread::of(&[]), None);
        let one = Spread::of(&[3.0]).unwrap();
        assert_eq!((one.n, one.mean, one.deviation), (1, 3.0, None));
        let spread = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        close(spread.mean, 5.0);
        close(spread.deviation.unwrap(), (32.0f64 / 7.0).sqrt());
    }

    /// Against sums of binomial coefficients.
    #[test]
    fn mcnemar_is_exact() {
        close(mcnemar(0, 1), 1.0);
        close(mcnemar(0, 5), 2.0 / 32.0);
        close(mcnemar(10, 2), 2.0 * (1.0 + 12.0 + 66.0) / 4096.0);
        close(mcnemar(2, 10), mcnemar(10, 2));
        close(mcnemar(1, 20), 2.0 * 22.0 / 2097152.0);
        for even in [0, 3, 1000] {
            assert_eq!(mcnemar(even, even), 1.0);
        }
        for (gained, lost) in [(59u64, 121u64), (90, 100), (7, 30), (450, 551)] {
            let n = gained + lost;
            let mut term = 0.5f64.powi(n as i32);
            let mut sum = term;
            for k in 1..=gained {
                term *= (n - k + 1) as f64 / k as f64;
                sum += term;
            }
            close(mcnemar(gained, lost), 2.0 * sum);
        }
        // As many pairs as a big table has: the normal approximation holds.
        let p = mcnemar(50_000, 50_500);
        let z: f64 = (500.0 - 1.0) / (100_500.0f64).sqrt();
        assert!((p - 0.1155).abs() < 1e-3 && z > 1.57 && z < 1.58, "{p} {z}");
    }

    /// Critical values of the printed tables of Student's distribution, which give p = 0.05 and 0.01 (two-sided).
    #[test]
    fn t_has_the_tails_of_the_tables() {
        let tail = |t: f64, freedom: f64| incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t));
        for (freedom, t05, t01) in [
            (1.0, 12.7062047, 63.6567412),
            (2.0, 4.3026527, 9.9248432),
            (4.0, 2.7764451, 4.6040949),
            (9.0, 2.2621572, 3.2498355),
        ] {
            assert!((tail(t05, freedom) - 0.05).abs() < 1e-8, "{freedom}");
            assert!((tail(t01, freedom) - 0.01).abs() < 1e-8, "{freedom}");
        }
        // With one degree of freedom the distribution is Cauchy's.
        close(tail(1.0, 1.0), 0.5);
        close(tail(3.0, 1.0), 1.0 - 2.0 / std::f64::consts::PI * 3.0f64.atan());
    }

    #[test]
    fn paired_t_is_of_the_differences() {
        assert_eq!(paired_t(&[0.4]), None);
        assert_eq!(paired_t(&[0.0, 0.0]), Some(1.0));
        assert_eq!(paired_t(&[0.5, 0.5, 0.5]), Some(0.0));
        // Mean 2, deviation 1, t = 2 sqrt(3): p = 1 - t / sqrt(2 + t^2), two degrees of freedom having a closed form.
        let t = 2.0 * 3.0f64.sqrt();
        close(paired_t(&[1.0, 2.0, 3.0]).unwrap(), 1.0 - t / (2.0 + t * t).sqrt());
        close(paired_t(&[-1.0, -2.0, -3.0]).unwrap(), paired_t(&[1.0, 2.0, 3.0]).unwrap());
    }

    #[test]
    fn gamma_is_the_factorial() {
        let mut factorial = 1.0f64;
        for n in 1..20 {
            factorial *= f64::from(n);
            assert!((ln_gamma(f64::from(n) + 1.0) - factorial.ln()).abs() < 1e-9);
        }
        close(ln_gamma(0.5), std::f64::consts::PI.sqrt().ln());
    }
}
