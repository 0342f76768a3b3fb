# 300 epochs on 8 GPUs with 16 images each. For another length set train_cfg.max_epochs alone; the rest follows.
# Counts accumulated batches with auto_scale_lr; mmengine looks runners up without a scope of their own.
runner_type = 'mmdet.FittedRateRunner'
train_cfg = dict(
    type='ResumableTrainLoop',
    max_epochs=300,
    val_interval=10,
    dynamic_intervals=[(-20, 1)],  # each epoch of the last stage
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    # On a CPU the constructor trains in float32 instead.
    constructor='DeviceAwareOptimWrapperConstructor',
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    # 0.001 / 64 for each image of a batch of 128
    optimizer=dict(type='AdamW', lr=0.002, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=35.0, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=True, begin=0, end=3, convert_to_iter_based=True),
    dict(type='CosineToEndLR', eta_min_ratio=0.01, by_epoch=True, begin=3, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=128)

custom_hooks = [
    dict(
        type='EMAHook',
        # decay = 0.9998 * (1 - exp(-step / 2000)); these two numbers follow the length of a shorter run.
        ema_type='ForeachExpMomentumEMA',
        momentum=0.0002,
        gamma=2000,
        update_buffers=True,
        priority=49,
    ),
    # Without mosaic and mixup, with the L1 loss.
    dict(type='LastStageHook', num_last_epochs=20, priority=48),
]
