"""The table of everything that the libraries read beside the configuration.

The commands apply it, and `python -m upfield.common.environment` prints it.
"""

from fnmatch import fnmatchcase

from upfield.common.environment.treatments import (
    ALLOWED,
    ANY,
    OVERRIDDEN,
    RECORDED,
    REFUSED,
    REMOVED,
    Influence,
)


def find(name: str) -> Influence | None:
    """Return the entry of a variable: the first of the table that matches its name."""
    return next(
        (
            influence
            for influence in TABLE
            if influence.is_variable and any(fnmatchcase(name, pattern) for pattern in influence.names.split())
        ),
        None,
    )


TRAINS = "train tune demo"
COMPUTES = f"{TRAINS} evaluate export enhance serve bids"
USES_RAY = "tune serve shard"
OFF = "0 no false none off"

ACCELERATE = (
    Influence(
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "Accelerate; its DeepSpeed launcher sets it",
        "divides each gradient",
        REMOVED,
        TRAINS,
        usual="1",
        instead="--data.micro_batch",
    ),
    Influence(
        "ACCELERATE_MIXED_PRECISION",
        "Accelerate; its launcher always sets it",
        "precision",
        OVERRIDDEN,
        TRAINS,
        instead="--run.precision",
    ),
    Influence(
        "ACCELERATE_DYNAMO_*",
        "Accelerate; its launcher always sets them",
        "compiles the network, and turns TF32 on",
        REMOVED,
        TRAINS,
        usual=f"{OFF} default",
        instead="--run.compile",
    ),
    Influence(
        "ACCELERATE_FP8_* ACCELERATE_DOWNCAST_BF16 XLA_USE_BF16 XLA_DOWNCAST_BF16",
        "Accelerate",
        "precision",
        REMOVED,
        TRAINS,
        usual=OFF,
        instead="--run.precision",
    ),
    Influence(
        "ACCELERATE_GRADIENT_CLIPPING",
        "Accelerate, for DeepSpeed",
        "clips gradients",
        REMOVED,
        TRAINS,
        usual="none",
        instead="--optim.clip_norm",
    ),
    Influence(
        "ACCELERATE_TORCH_DEVICE",
        "Accelerate; Ray Train sets it in its workers",
        "puts all processes on one device",
        REMOVED,
        TRAINS,
        instead="CUDA_VISIBLE_DEVICES or ACCELERATE_USE_CPU",
        belongs_to_worker=True,
    ),
    Influence(
        "ACCELERATE_USE_DEEPSPEED ACCELERATE_USE_MEGATRON_LM ACCELERATE_USE_PARALLELISM_CONFIG "
        "ACCELERATE_USE_SAGEMAKER",
        "Accelerate; its launcher sets them",
        "replaces the optimizer, splits layers, or exchanges gradients in another way",
        REFUSED,
        TRAINS,
        usual=OFF,
        instead="cluster/accelerate/eight_gpus.yaml, or fsdp.yaml for networks that do not fit on one GPU",
    ),
    Influence(
        "FSDP_IGNORED_MODULES",
        "Accelerate",
        "leaves parameters out of the exchange of gradients, so that processes drift apart",
        REFUSED,
        TRAINS,
        instead="FSDP for all modules",
    ),
    Influence(
        "FSDP_ACTIVATION_CHECKPOINTING FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD",
        "Accelerate",
        "recomputes activations twice",
        REFUSED,
        TRAINS,
        usual=OFF,
        instead="--run.activation_checkpointing",
    ),
    Influence(
        "ACCELERATE_USE_FSDP FSDP_*",
        "Accelerate; its launcher sets them from cluster/accelerate/fsdp.yaml",
        "splits weights over processes; sums are rounded differently",
        RECORDED,
        TRAINS,
    ),
    Influence("ACCELERATE_USE_CPU", "Accelerate, upfield", "device", RECORDED, TRAINS),
    Influence(
        "PMI_* OMPI_COMM_WORLD_* MV2_COMM_WORLD_* MPI_LOCALNRANKS MPI_LOCALRANKID",
        "Accelerate, on CPUs; mpirun and srun set them",
        "number of processes",
        REMOVED,
        TRAINS,
        usual=ANY,
        instead="torchrun, or RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR",
    ),
    Influence("FORK_LAUNCHED", "Accelerate", "leaves the process group open at the end", REMOVED, TRAINS, usual=OFF),
    Influence(
        "PARALLELISM_CONFIG_* MEGATRON_LM_* ACCELERATE_DEEPSPEED_* ACCELERATE_CONFIG_DS_FIELDS "
        "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE ACCELERATE_ALLOW_CP_STANDALONE DEEPSPEED_USE_HPU",
        "Accelerate",
        "settings of back ends that are refused",
        ALLOWED,
        TRAINS,
    ),
    Influence(
        "ACCELERATE_CPU_AFFINITY ACCELERATE_DEBUG_MODE ACCELERATE_DEBUG_RDV_FILE ACCELERATE_LOG_LEVEL "
        "ACCELERATE_ENABLE_RICH ACCELERATE_BYPASS_DEVICE_MAP ACCELERATE_INIT_INCLUDE_BUFFERS ACCELERATE_NUM_PROCESSES "
        "TRANSFORMERS_NO_ADVISORY_WARNINGS PYTORCH_ENABLE_MPS_FALLBACK PT_HPU_LAZY_MODE "
        "USE_TORCH_XLA PJRT_DEVICE TPU_NAME",
        "Accelerate",
        "placement on cores, log lines, and devices or functions that upfield does not use",
        ALLOWED,
        TRAINS,
    ),
    Influence(
        "WANDB_* MLFLOW_* CLEARML_* COMET_* AIM_* DVCLIVE_* SWANLAB_* TRACKIO_* NEPTUNE_* TENSORBOARD_*",
        "the packages of run.trackers",
        "where figures are logged",
        ALLOWED,
        TRAINS,
    ),
    Influence(
        "huggingface/accelerate/default_config.yaml below HF_HOME, XDG_CACHE_HOME or ~/.cache",
        "`accelerate launch` without --config_file",
        "sets the variables above",
        ALLOWED,
        TRAINS,
        instead="the variables are treated as above; upfield's own launches pass a --config_file",
        is_variable=False,
    ),
)

TORCH = (
    Influence(
        "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT GROUP_RANK "
        "GROUP_WORLD_SIZE ROLE_* NODE_RANK",
        "torch, Accelerate, upfield; a launcher sets them",
        "which process of a job this is",
        ALLOWED,
        instead="upfield refuses incomplete sets, values that are not numbers, and groups of another size",
    ),
    Influence("TORCHELASTIC_* TORCH_ELASTIC_*", "torchrun", "rendezvous, logs", ALLOWED),
    Influence(
        "NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "cuBLAS, cuDNN, torch",
        "rounds the inputs of float32 products to 10 bits",
        REMOVED,
        COMPUTES,
        usual=OFF,
        instead="--run.precision, or `export --precision`",
    ),
    Influence(
        "DNNL_DEFAULT_FPMATH_MODE ONEDNN_DEFAULT_FPMATH_MODE",
        "oneDNN, on CPUs",
        "rounds float32 to bfloat16",
        REMOVED,
        COMPUTES,
        usual="strict",
        instead="--run.precision bf16",
    ),
    Influence(
        "TRITON_F32_DEFAULT TRITON_DEFAULT_FP_FUSION",
        "Triton",
        "precision of products in compiled kernels",
        REMOVED,
        COMPUTES,
    ),
    Influence(
        "TORCHINDUCTOR_CACHE_DIR TORCHINDUCTOR_COMPILE_THREADS TORCHINDUCTOR_WORKER_START TORCHDYNAMO_VERBOSE "
        "TORCH_COMPILE_DEBUG TRITON_CACHE_DIR TRITON_HOME TRITON_PTXAS_PATH TRITON_LIBDEVICE_PATH",
        "torch.compile, Triton",
        "where compiled code is kept, and how fast it is compiled",
        ALLOWED,
        COMPUTES,
    ),
    Influence(
        "TORCHINDUCTOR_* TORCHDYNAMO_* TORCH_COMPILE_* TORCH_DYNAMO_* INDUCTOR_* AOT_* CUTLASS_EPILOGUE_FUSION",
        "torch.compile",
        "which kernels are compiled, or whether any are",
        REMOVED,
        COMPUTES,
        instead="--run.compile",
    ),
    Influence("TRITON_INTERPRET", "Triton, upfield's kernels", "interprets the kernels, for tests", RECORDED, COMPUTES),
    Influence(
        "CUBLAS_WORKSPACE_CONFIG CUBLASLT_* TORCH_BLAS_* TORCH_LINALG_* TORCH_CUDNN_* TORCH_LINEAR_FLATTEN_3D "
        "TORCH_MKLDNN_* PYTORCH_TUNABLEOP_* PYTORCH_MIOPEN_* USE_NNPACK NCCL_ALGO NCCL_PROTO NCCL_NTHREADS",
        "torch, cuBLAS, cuDNN, NCCL",
        "the order of sums; --run.deterministic checks the first",
        RECORDED,
        COMPUTES,
    ),
    Influence(
        "OMP_* GOMP_* KMP_* MKL_* OPENBLAS_* ATEN_CPU_CAPABILITY DNNL_MAX_CPU_ISA ONEDNN_MAX_CPU_ISA",
        "OpenMP, MKL, OpenBLAS, oneDNN, torch",
        "threads and CPU instructions, and so the order of sums; OMP_NUM_THREADS also sets upfield's threads",
        RECORDED,
    ),
    Influence(
        "CUDA_* CUDNN_* NVIDIA_* HIP_* ROCR_* PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF PYTORCH_HIP_ALLOC_CONF "
        "PYTORCH_NO_CUDA_MEMORY_CACHING PYTORCH_NVML_BASED_CUDA_CHECK",
        "CUDA, torch, ONNX Runtime",
        "which GPUs are visible, and how their memory is managed",
        ALLOWED,
        COMPUTES,
    ),
    Influence(
        "NCCL_* GLOO_* TORCH_NCCL_* TORCH_GLOO_* TORCH_DIST* TORCH_FR_* TORCHCOMM_* USE_LIBUV",
        "torch.distributed",
        "how processes reach each other, and what they log",
        ALLOWED,
    ),
    Influence(
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        "torch.load",
        "whether code in a weight file runs",
        OVERRIDDEN,
        COMPUTES,
        instead="upfield never runs it",
    ),
    Influence("LOGLEVEL", "torch", "log lines; an unknown level ends the command", REMOVED, usual=ANY),
    Influence(
        "TORCH_* PYTORCH_* TORCHEXPORT_* KINETO_* FX_*",
        "torch",
        "logs, profiles, and functions that upfield does not use",
        ALLOWED,
    ),
)

ONNX_RUNTIME = (
    Influence("ORT_DISABLE_TELEMETRY", "ONNX Runtime", "sends telemetry over the network unless it is 1", OVERRIDDEN),
    Influence(
        "ORT_*",
        "ONNX Runtime and its TensorRT provider",
        "precision, kernels, plug-ins, engine caches, and options read from the model file",
        REMOVED,
        COMPUTES,
        instead="--device, or `export --precision`",
    ),
)

RAY = (
    Influence("RAY_ADDRESS", "Ray, upfield", "which cluster is used", ALLOWED, USES_RAY, instead="--address"),
    Influence(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV",
        "Ray",
        "runs workers in another environment if a parent process is `uv run`",
        OVERRIDDEN,
        USES_RAY,
    ),
    Influence("RAY_USAGE_STATS_*", "Ray", "telemetry", OVERRIDDEN, USES_RAY),
    Influence("RAY_TRAIN_V2_ENABLED", "Ray Train", "which version of Ray Train runs", OVERRIDDEN, "tune"),
    Influence(
        "RAY_TUNE_CALLBACKS RAY_TRAIN_CALLBACKS RAY_STORAGE RAY_AIR_LOCAL_CACHE_DIR TUNE_RESULT_DIR "
        "TUNE_RESULT_BUFFER_* TUNE_ONLY_STORE_CHECKPOINT_SCORE_ATTRIBUTE RAY_CHDIR_TO_TRIAL_DIR TUNE_DISABLE_*",
        "Ray Tune, Ray Train",
        "runs other code in a sweep, moves its results, or delays reports, so that bad trials stop later",
        REMOVED,
        "tune",
        instead="--out and --storage",
    ),
    Influence(
        "RAY_AIR_NEW_OUTPUT TUNE_GLOBAL_CHECKPOINT_S",
        "Ray Tune",
        "printed lines; how often the state of a sweep is saved",
        ALLOWED,
        "tune",
    ),
    Influence(
        "RAY_SERVE_*",
        "Ray Serve",
        "routing and limits of its own web server, which upfield does not use, and health checks",
        ALLOWED,
        "serve",
    ),
    Influence(
        "RAY_* TUNE_* TRAIN_* HOROVOD_* TF_CONFIG",
        "Ray",
        "ports, folders, time limits, logs, and how many trials wait",
        ALLOWED,
        USES_RAY,
    ),
    Influence(
        "/tmp/ray/ray_current_cluster, below RAY_TMPDIR or TMPDIR if they are set",
        "Ray, if neither an address nor RAY_ADDRESS is given",
        "which cluster is used",
        ALLOWED,
        USES_RAY,
        instead="--address local, or RAY_ADDRESS=local",
        is_variable=False,
    ),
    Influence(
        "a parent process named `uv`",
        "Ray",
        "the environment of workers",
        OVERRIDDEN,
        USES_RAY,
        is_variable=False,
    ),
    Influence(
        "a process with `raylet` in its command line",
        "Ray, for the address `auto` if the file above is missing",
        "which cluster is used",
        ALLOWED,
        USES_RAY,
        instead="an address HOST:PORT",
        is_variable=False,
    ),
)

REST = (
    Influence(
        "JSONARGPARSE_*",
        "jsonargparse",
        "reads the keys of a configuration from variables, or adds flags",
        REMOVED,
    ),
    Influence("SCIPY_ARRAY_API", "SciPy", "which arrays its functions accept and return", REMOVED, usual=OFF),
    Influence("UPFIELD_TOKEN", "upfield", "the token of `serve`", ALLOWED, "serve"),
    Influence("UPFIELD_*", "the scripts in cluster/", "containers and waiting times", ALLOWED),
    Influence(
        "HOME XDG_CACHE_HOME HF_HOME TMPDIR TEMP TMP MPLCONFIGDIR NILEARN_* SKIMAGE_*",
        "all",
        "where caches and temporary files are; results do not depend on them",
        ALLOWED,
        instead="--data.cache_dir, for shards of a remote set",
    ),
    Influence(
        "AWS_* GOOGLE_* STORAGE_EMULATOR_HOST CLOUDSDK_* AZURE_* AZURITE_* S3_* HTTP_PROXY HTTPS_PROXY "
        "ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy SSL_* REQUESTS_CA_BUNDLE",
        "obstore, the clouds' packages, fsspec and Arrow",
        "how an address is reached; shards are checked against their sha256",
        ALLOWED,
    ),
    Influence(
        "FSSPEC_*",
        "fsspec",
        "how an address is reached; a kind of store that has such options is opened with fsspec's slower client",
        ALLOWED,
        instead="the variables of the cloud, such as AWS_ENDPOINT_URL",
    ),
    Influence(
        "~/.config/fsspec, ~/.aws, ~/.config/gcloud, ~/.azure",
        "fsspec, obstore and the clouds' packages, for remote addresses",
        "how an address is reached; shards are checked against their sha256",
        ALLOWED,
        is_variable=False,
    ),
    Influence(
        "matplotlibrc in the current folder or ~/.config/matplotlib",
        "matplotlib",
        "the look of figures",
        ALLOWED,
        is_variable=False,
    ),
    Influence(
        "MPLBACKEND",
        "matplotlib; Jupyter sets it",
        "where figures are shown, which upfield writes to files; an unknown name ends the command",
        REMOVED,
        usual=ANY,
    ),
    Influence("NPY_* NUMEXPR_* ITK_*", "NumPy, SimpleITK", "CPU instructions", ALLOWED),
    Influence("PYTHONWARNINGS", "Python", "turns warnings of libraries into errors", REMOVED, usual=ANY),
    Influence("PYTHONUTF8", "Python", "how file names are read, and so the ids of subjects", OVERRIDDEN),
    Influence(
        "PYTHON* LANG LC_* COLUMNS LINES TERM NO_COLOR FORCE_COLOR",
        "Python, rich",
        "how text is printed; files and their names are always UTF-8",
        ALLOWED,
    ),
    Influence(
        "the names, paths and arguments of parent processes",
        "upfield",
        "nothing: a launcher is recognised by its variables",
        OVERRIDDEN,
        is_variable=False,
    ),
)

TABLE = (*ACCELERATE, *TORCH, *ONNX_RUNTIME, *RAY, *REST)
