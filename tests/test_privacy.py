"""Leakage: controls that must come out, scores against plain loops, floors against brute force."""

import numpy as np
import pytest
import torch

import psl
from psl.errors import DataError, InfeasibleError, ScenarioError
from psl.privacy import LabelLeakage, Leakage, Noise, NoPeek, Quantise, attacks, distance_correlation, scores


@pytest.fixture(scope="module")
def initial():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return psl.models.cnn()


def trained(framework, model, rounds=30, **options):
    options = {"cut": "relu3", "batch_size": 32, "lr": 0.1, "n_clients": 5} | options
    return psl.train(framework, model, "digits", rounds=rounds, eval_every=rounds, progress=False, **options)


@pytest.fixture(scope="module")
def sfl(initial):
    return trained("sfl", initial)


@pytest.fixture(scope="module")
def epsl(initial):
    return trained("epsl", initial, phi=1.0, batch_size=64)


@pytest.fixture(scope="module")
def leakage(sfl):
    return psl.privacy.measure(sfl, "digits", seeds=2)


def test_the_first_layer_gives_the_image_away_and_the_mean_image_nothing(leakage):
    frame = leakage.to_frame().set_index("name")
    assert frame.r2["conv1"] > 0.999
    assert frame.reidentified["conv1"] == 1
    assert frame.r2["mean image"] == 0
    assert frame.within_class_r2["class mean"] == 0
    assert frame.reidentified["mean image"] == pytest.approx(1 / leakage.n_private)
    assert 0.2 < frame.r2["class mean"] < 0.6, "SSIM and R² of the class mean alone are not small"
    assert (frame.r2_sd.dropna() <= 0.02).all()
    assert (frame.reidentified_sd.dropna() <= 0.07).all()


def test_the_largest_value_at_or_behind_a_cut_never_rises(leakage):
    for score in ("r2", "reidentified"):
        value = leakage.at_or_behind(score)
        assert (np.diff(value) <= 0).all()
        assert (value >= leakage.mean(score)).all()


@pytest.mark.parametrize(("r2", "reid"), [(0.97, None), (0.9, None), (0.7, 0.99), (None, 0.5), (1.0, None)])
def test_the_floor_is_that_of_brute_force(leakage, r2, reid):
    def within(cut):
        later = [k for k, j in enumerate(leakage.cuts) if j >= cut]
        return all(
            (r2 is None or leakage.mean("r2")[k] <= r2) and (reid is None or leakage.mean("reidentified")[k] <= reid)
            for k in later
        )

    assert leakage.floor(r2=r2, reid=reid) == min(cut for cut in leakage.cuts if within(cut))


def test_a_budget_that_no_cut_keeps_says_what_is_reachable(leakage):
    with pytest.raises(InfeasibleError, match=r"at the deepest, 'linear2', r2 = 0\.\d+"):
        leakage.floor(r2=0.01)
    with pytest.raises(ScenarioError, match="expected a budget, got none"):
        leakage.floor()


def test_the_same_seed_gives_the_same_bits_and_leaves_the_random_state(sfl, leakage):
    before = torch.random.get_rng_state()
    again = psl.privacy.measure(sfl, "digits", seeds=2)
    assert again == leakage
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_record_survives_a_file_and_shows_itself(leakage, tmp_path):
    assert Leakage.load(leakage.save(tmp_path / "leakage.json")) == leakage
    shown = leakage._repr_html_()
    assert "mean image" in shown and "At least this much leaks" in shown
    assert leakage.reconstructions.shape == (10, 8, 1, 8, 8)


def test_distance_correlation_of_independent_data_is_zero_and_of_equal_data_one():
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(20):
        x, y = (torch.randn(64, 64, generator=generator) for _ in range(2))
        found.append(distance_correlation(x, y))
    assert abs(np.mean(found)) < 0.03
    x, y = (torch.randn(360, 64, generator=generator) for _ in range(2))
    assert abs(distance_correlation(x, y)) < 0.03
    assert distance_correlation(x, 3 * x + 1) == pytest.approx(1)
    with pytest.raises(DataError, match="4 pairs or more"):
        distance_correlation(x[:3], y[:3])


def test_the_biased_estimate_is_far_from_zero_for_independent_data():
    from psl.training.defences import biased_distance_correlation

    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(64, 128, generator=generator) for _ in range(2))
    assert biased_distance_correlation(x, y) > 0.8
    n = len(x)
    a, b = (torch.cdist(z.double(), z.double()).numpy() for z in (x, y))
    centre = np.eye(n) - 1 / n
    a, b = centre @ a @ centre, centre @ b @ centre
    expected = np.sqrt((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    assert float(biased_distance_correlation(x, y)) == pytest.approx(expected, rel=1e-3)


def test_ridge_is_that_of_scikit_learn_with_leave_one_out():
    from sklearn.linear_model import RidgeCV

    generator = torch.Generator().manual_seed(2)
    for m, d in ((60, 20), (40, 70)):
        x, asked = torch.randn(m, d, generator=generator), torch.randn(15, d, generator=generator)
        y = torch.randn(m, 3, generator=generator) + x[:, :3]
        found = attacks.ridge(x, y, asked)
        scale = float((x.double() - x.double().mean(0)).square().mean())
        alphas = (attacks._RIDGES * m * d).numpy() * scale
        model = RidgeCV(alphas[alphas > 1e-6]).fit(x.double().numpy(), y.double().numpy())
        np.testing.assert_allclose(found.numpy(), model.predict(asked.double().numpy()), atol=2e-4)


def test_scores_are_those_of_plain_loops():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(5, 2, 9, 9, generator=generator, dtype=torch.float64)
    y = x + 0.1 * torch.rand(5, 2, 9, 9, generator=generator, dtype=torch.float64)
    span, found = float(x.max() - x.min()), []
    for a, b in zip(x.numpy().reshape(-1, 9, 9), y.numpy().reshape(-1, 9, 9), strict=True):
        for i in range(3):
            for j in range(3):
                u, v = a[i : i + 7, j : j + 7].ravel(), b[i : i + 7, j : j + 7].ravel()
                both, (c1, c2) = np.cov(u, v), ((0.01 * span) ** 2, (0.03 * span) ** 2)
                top = (2 * u.mean() * v.mean() + c1) * (2 * both[0, 1] + c2)
                found.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (both[0, 0] + both[1, 1] + c2)))
    assert scores.ssim(x, y) == pytest.approx(np.mean(found))
    assert scores.psnr(x, y) == pytest.approx(10 * np.log10(span**2 / float(((x - y) ** 2).mean())))
    assert scores.r2(x, x, x.mean(0)) == 1
    assert scores.r2(x, x.mean(0).expand_as(x), x.mean(0)) == 0
    assert scores.reidentified(x, x) == 1
    assert scores.reidentified(x, x.flip(0)) == 0.2, "only the middle one stays in its place"


def test_who_knows_less_recovers_less(epsl, initial):
    options = {"cuts": ["conv1", "conv2", "relu3"], "seeds": 1}
    known = {
        knows: psl.privacy.measure(epsl, "digits", knows=knows, initial=initial, **options).mean("r2")
        for knows in ("weights", "peer", "initial")
    }
    assert (known["initial"] <= known["weights"] + 0.01).all()
    assert (known["peer"] <= known["weights"] + 0.01).all()
    few = psl.privacy.measure(epsl, "digits", auxiliary=30, **options)
    assert (few.mean("r2") < known["weights"]).all()


@pytest.mark.parametrize("attack", ["decoder", "white-box"])
def test_other_attacks_recover_images_at_shallow_cuts(sfl, attack):
    found = psl.privacy.measure(sfl, "digits", attack=attack, cuts=["conv1"], seeds=1, private=30)
    assert found.mean("r2")[0] > 0.9
    assert found == psl.privacy.measure(sfl, "digits", attack=attack, cuts=["conv1"], seeds=1, private=30)


def test_averaging_repeated_sendings_undoes_noise_and_attackers_who_do_not_adapt_flatter_it(sfl):
    def r2(**options):
        found = psl.privacy.measure(sfl, "digits", cuts=["pool1"], defence=Noise(1.0), seeds=1, **options)
        return float(found.mean("r2")[0])

    once = r2()
    assert r2(sendings=16) > once + 0.05
    assert r2(adapts=False) < once
    clean = float(psl.privacy.measure(sfl, "digits", cuts=["pool1"], seeds=1).mean("r2")[0])
    assert once < clean


def test_what_cannot_be_measured_is_refused(sfl, initial, tmp_path):
    def measure(*args, **options):
        return psl.privacy.measure(*args, **({"seeds": 1, "cuts": [1]} | options))

    with pytest.raises(ScenarioError, match="knows='peer': expected a history with a model per client"):
        measure(sfl, "digits", knows="peer")
    with pytest.raises(ScenarioError, match="initial: expected the model before training"):
        measure(sfl, "digits", knows="initial")
    with pytest.raises(ScenarioError, match="history_or_model: expected a History or a torch"):
        measure("sfl", "digits")
    with pytest.raises(ScenarioError, match=r"cuts: expected numbers 1\.\.10 or names of cuts, got 'pool7'"):
        measure(sfl, "digits", cuts=["pool7"])
    with pytest.raises(ScenarioError, match="defence: expected a defence or None"):
        measure(sfl, "digits", defence="noise")
    with pytest.raises(ScenarioError, match="history: expected one with its trained models"):
        measure(type(sfl).load(sfl.save(tmp_path / "history.json")), "digits")
    for wrong, message in ((lambda: Noise(-1), "Noise.sigma"), (lambda: Quantise(0), "Quantise.bits")):
        with pytest.raises(ScenarioError, match=message):
            wrong()
    with pytest.raises(ScenarioError, match=r"NoPeek.alpha"):
        NoPeek(-0.1)


# --- labels ---


def test_gradients_cluster_by_label(sfl):
    found = psl.privacy.label_leakage(sfl, seeds=1, rounds=10)
    assert found.accuracy[0] > 0.9
    assert found.chance[0] < 0.2


def test_the_broadcast_tells_labels_of_other_clients(epsl, tmp_path):
    found = psl.privacy.label_leakage(epsl, view="broadcast", seeds=1, rounds=20)
    assert found.auc[0] >= 0.85
    assert found.shuffled_auc[0] <= 0.55
    assert found.accuracy[0] > 0.9 > 0.4 > found.chance[0]
    assert LabelLeakage.load(found.save(tmp_path / "labels.json")) == found
    assert "by chance" in found._repr_html_()


def test_where_nothing_is_broadcast_there_is_nothing_to_attack(sfl, epsl):
    for history, options in ((sfl, {}), (epsl, {"phi": 0.0}), (epsl, {"n_clients": 1})):
        with pytest.raises(ScenarioError, match="view='broadcast': expected gradients that all clients receive"):
            psl.privacy.label_leakage(history, view="broadcast", **options)


def test_drawn_rows_broadcast_nothing(epsl):
    with pytest.raises(ScenarioError, match=r"linearise: expected one of .*, got 'sampled'\. Fix: other rules send"):
        psl.privacy.label_leakage(epsl, view="broadcast", linearise="sampled")
