"""Writes a few of ONNX's cases into fixtures/conformance, for `make test`: NAME.onnx, and NAME.npz with in.INPUT and out.OUTPUT.

    python tools/conformance/sample.py"""

import pathlib
import pickle

import numpy as np
import onnx

ROOT = pathlib.Path(__file__).resolve().parents[2]
CASES, OUT = ROOT / "target/conformance/cases", ROOT / "fixtures/conformance"
# Those whose results were wrong once, and some of each kind of operator that passes rewrite.
NAMES = """test_reduce_sum_empty_set_non_reduced_axis_zero.baked test_affine_grid_3d_expanded.baked
test_affine_grid_3d_align_corners_expanded.baked test_attention_4d_causal_expanded test_attention_4d_gqa_softcap_expanded
test_attention_3d_expanded test_layer_normalization_3d_axis2_epsilon_expanded_ver18 test_rms_normalization_3d_axis2_epsilon_expanded
test_group_normalization_epsilon_expanded test_gelu_default_1_expanded test_softmax_axis_1_expanded_ver18 test_softmax_axis_0
test_rotary_embedding_expanded test_mish_expanded test_reshape_zero_and_negative_dim.baked test_reshape_allowzero_reordered.baked
test_slice_neg_steps.baked test_expand_dim_unchanged.baked test_gather_negative_indices.baked test_transpose_all_permutations_3
test_matmul_4d test_gemm_all_attributes test_split_variable_parts_2d_opset18.baked test_squeeze_negative_axes.baked
test_unsqueeze_unsorted_axes.baked test_where_example test_reduce_mean_default_axes_keepdims_random.baked test_pow_bcast_scalar
test_range_float_type_positive_delta_expanded test_loop11 test_if test_qlinearmatmul_2D_uint8_float32.baked
test_dequantizelinear_axis.opset26.baked test_concat_3d_axis_negative_3 test_clip_expanded test_einsum_batch_matmul""".split()


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        # Under the operator set that the runtime has.
        older = name.replace(".baked", "") + ".opset26" + (".baked" if name.endswith(".baked") else "")
        name = older if (CASES / older).exists() else name
        case = CASES / name
        if not case.exists():
            print("there is no case", name)
            continue
        model = onnx.load(case / "model.onnx")
        known = pickle.loads((case / "data.pickle").read_bytes())
        inputs, outputs = known["sets"][0]
        arrays = {f"in.{i.name}": np.asarray(v) for i, v in zip(model.graph.input, inputs)}
        arrays |= {f"out.{o.name}": np.asarray(v) for o, v in zip(model.graph.output, outputs)}
        onnx.save(model, OUT / f"{name}.onnx")
        np.savez_compressed(OUT / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
