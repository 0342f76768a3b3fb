default_scope = 'mmdet'
custom_imports = dict(imports=['yolov7_simple'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Also at SIGTERM and SIGUSR1.
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
    # Here and not in custom_hooks, so that a list of the user's own does not remove them.
    memory_format=dict(type='MemoryFormatHook', channels_last=True),  # convolutions are faster so
    mix_dataset=dict(type='MixDatasetHook'),
    checkpoint_check=dict(type='CheckpointCheckHook'),
    num_classes_check=dict(type='NumClassCheckHook'),
    non_finite=dict(type='NonFiniteLossHook'),
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='ReadableDetVisualizer', vis_backends=vis_backends, name='visualizer')

env_cfg = dict(
    # True searches for the fastest kernels at the first batch of each size, of which the recipe has 16 to 21: for long
    # runs on a GPU. A repeated run then differs in its rounding.
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
sync_bn = 'torch'
# mmengine looks wrappers up without a scope of their own.
model_wrapper_cfg = dict(type='mmdet.DeviceAwareDistributedDataParallel')

log_level = 'INFO'
load_from = None
resume = False
